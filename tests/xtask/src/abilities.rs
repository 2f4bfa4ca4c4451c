//! The page of all mechanisms: what each can do, with the test that proves it ([`crate::proofs`]), or why not.

use ipc_bus::MECHANISMS;
use ipc_kernel::{Ability, Descriptor};

use crate::{
    proofs::{Proofs, Test},
    reference::{code, heading, link, push, table},
};

const INTRODUCTION: &str = "# All mechanisms

What can be done with each. A mark leads to the first of the tests that prove it, which is a client of the service as any
other; all of them are listed below. Where there is a dash, a note says why, and what there is instead. The marks
come from the tests, the dashes from the program: a mark without a test, and a test of what is not there, fail the build.

";

/// The page, without its first line.
pub fn page(proofs: &Proofs) -> String {
    let mut text = INTRODUCTION.to_owned();
    let names = Ability::ALL.iter().map(|ability| ability.name());
    let head: Vec<_> = std::iter::once("mechanism").chain(names).collect();
    table(
        &mut text,
        &head,
        MECHANISMS.iter().map(|descriptor| {
            let cells = Ability::ALL.iter().map(|&ability| cell(descriptor, ability, proofs));
            std::iter::once(link(descriptor.name)).chain(cells).collect()
        }),
    );
    heading(&mut text, "What the columns mean");
    let meaning = |ability: &Ability| vec![ability.name().to_owned(), ability.summary().to_owned()];
    table(&mut text, &["column", "meaning"], Ability::ALL.iter().map(meaning));
    heading(&mut text, "The tests");
    push(&mut text, "Files are below `tests/`. Each test runs on every kind of bus that it is there for.\n");
    for descriptor in MECHANISMS.iter() {
        heading(&mut text, descriptor.name);
        let offered = Ability::ALL.iter().filter(|&&ability| descriptor.offers(ability));
        let row = |&ability: &Ability| {
            let tests: Vec<_> = proofs.of((descriptor.name, ability)).iter().map(full_link).collect();
            vec![ability.name().to_owned(), tests.join("<br>")]
        };
        table(&mut text, &["", "proved by"], offered.map(row));
    }
    push(&mut text, "\n");
    for descriptor in MECHANISMS.iter() {
        for lack in descriptor.lacks {
            push(&mut text, &format!("[^{}]: {}.\n", note(descriptor, lack.ability), lack.reason));
        }
    }
    text
}

fn cell(descriptor: &Descriptor, ability: Ability, proofs: &Proofs) -> String {
    match (descriptor.offers(ability), proofs.of((descriptor.name, ability))) {
        (false, _) => format!("— [^{}]", note(descriptor, ability)),
        (true, []) => "not proved".to_owned(),
        (true, [test, ..]) => format!("[✓]({} \"{}\")", href(test), test.name),
    }
}

fn note(descriptor: &Descriptor, ability: Ability) -> String {
    format!("{}-{}", descriptor.name, ability.name())
}

fn full_link(test: &Test) -> String {
    let file = test.file.strip_prefix("tests/").unwrap_or(&test.file);
    format!("[{}]({}) {}", file, href(test), code(&test.name))
}

/// From docs/reference.
fn href(test: &Test) -> String {
    format!("../../{}", test.file)
}
