//! What a row says that its objects can do, and cannot ([`Ability`]), against the objects themselves.

use std::collections::BTreeSet;

use ipc_kernel::{Ability, Descriptor, Kind, Result, mechanism::Permissions};

use crate::{
    fixtures::{self, Made},
    making::Scratch,
    suite::{self, each_mechanism},
};

#[test]
fn every_lack_has_one_reason() {
    each_mechanism(|descriptor| {
        let lacking: BTreeSet<_> = descriptor.lacks.iter().map(|lack| lack.ability).collect();
        assert_eq!(lacking.len(), descriptor.lacks.len(), "it gives two reasons for one lack");
        for &ability in Ability::ALL {
            let name = ability.name();
            match descriptor.lack(ability) {
                Some(reason) => {
                    assert!(!descriptor.offers(ability), "it has {name}, and says that it lacks it");
                    assert!(
                        reason.len() > 20 && !reason.contains('\n') && !reason.ends_with('.'),
                        "{reason}"
                    );
                }
                None => assert!(descriptor.offers(ability), "it lacks {name}, and does not say why"),
            }
        }
    });
}

/// Whether it is refused as something that cannot be done with such an object, whatever else the answer is.
fn is_refused<T>(result: Result<T>) -> bool {
    result.is_err_and(|error| error.kind == Kind::NotSupported)
}

fn refuses(descriptor: &Descriptor, ability: Ability, made: &Made) -> Option<bool> {
    let endpoint = &made.endpoint;
    match ability {
        Ability::Attach => Some(is_refused(suite::attach(&endpoint.address().to_string()))),
        Ability::Fd => {
            Some(is_refused(suite::open(descriptor.name, &**endpoint, made.open.unwrap_or_default())))
        }
        Ability::Permissions => Some(is_refused(endpoint.set_permissions(Permissions::default()))),
        Ability::Remove => Some(is_refused(endpoint.remove())),
        _ => None,
    }
}

/// What is lacking, every object refuses as not supported; what is offered, at least one does not.
#[test]
fn objects_refuse_what_their_mechanism_lacks() {
    each_mechanism(|descriptor| {
        let mut scratch = Scratch::new();
        let all = fixtures::endpoints(descriptor.name, &mut scratch);
        // Permissions can also be those that Create gives; Remove is the last, as it takes the object away.
        let has_mode = descriptor.create_parameters.iter().any(|parameter| parameter.key == "mode");
        for &ability in Ability::ALL {
            let refusals: Vec<_> = all.iter().filter_map(|made| refuses(descriptor, ability, made)).collect();
            if refusals.is_empty() {
                continue;
            }
            let name = ability.name();
            match descriptor.offers(ability) {
                true if ability == Ability::Permissions && has_mode => {}
                true => assert!(refusals.contains(&false), "it offers {name}, and every object refuses it"),
                false => assert!(!refusals.contains(&false), "it lacks {name}, and an object has it"),
            }
            assert!(
                ability != Ability::Permissions || !has_mode || descriptor.offers(ability),
                "it has the key mode"
            );
        }
    });
}
