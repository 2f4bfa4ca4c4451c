//! FUSE mounts, fuse(4): published files. What serves them is in `fuse/`.

use crate::{
    Ability, Lack, Descriptor, Dict, Error, Opening, Parameter, Parameters, Result, Type,
    fuse::{filesystem, list, mount},
    mechanism::Adoption,
    proc,
    shape::Shape,
};

pub static DESCRIPTOR: Descriptor = Descriptor {
    name: "fuse",
    schemes: &["fuse"],
    summary: "Published files: content, and endpoints of every kind, in a directory (fuse(4))",
    shapes: &[Shape::Filesystem],
    create_parameters: &[
        PATH,
        Parameter::new("mode", Type::Mode, "Permission bits of the files; directories may be entered by who may read")
            .default("0600"),
        Parameter::new("tree", Type::Bool, "Publish the caller's endpoints, those to come too, as MECHANISM/NUMBER")
            .default("false"),
        Parameter::new("size", Type::Size { min: 4096, max: 256 << 20 }, "Bytes that all files may hold").default("16M"),
        Parameter::new("files", Type::U32 { min: 1, max: 16384 }, "How many files there may be").default("1024"),
        Parameter::new("deadline", Type::U32 { min: 1, max: 60_000 }, "Milliseconds that a read or write may wait, then it is EIO")
            .default("5000"),
    ],
    attach_parameters: &[PATH],
    columns: list::COLUMNS,
    open_parameters: &[],
    create: filesystem::create,
    anonymous: |_| false,
    attach,
    adopt: |fd| Ok(Adoption::Refused(fd)),
    list: || Ok(list::mounts().into()),
    limits,
    available: mount::available,
    driver: None,
    lacks: &[
        Lack::new(
            Ability::Attach,
            "a mount belongs to the process that serves it; `Create` makes one",
        ),
        Lack::new(
            Ability::Wait,
            "the service answers readers and writers itself; the signals `Read` and `Written` tell of them",
        ),
        Lack::new(
            Ability::Relay,
            "the files are published from other endpoints (`PublishEndpoint`); those can be relayed",
        ),
    ],
    reference: include_str!("fuse.md"),
};

const PATH: Parameter =
    Parameter::new("path", Type::Path, "Absolute path of an empty directory of the caller's").required();

fn attach(parameters: &Parameters) -> Result<Opening> {
    let path = parameters.path("path")?.unwrap_or_default();
    Err(Error::not_supported(format!(
        "cannot attach to {}: a mount belongs to the process that serves it; Create makes one, and List() shows all",
        path.display()
    )))
}

fn limits() -> Dict {
    [("max_user_bgreq", "max-user-bgreq"), ("max_user_congthresh", "max-user-congthresh")]
        .into_iter()
        .filter_map(|(file, key)| {
            let value = std::fs::read_to_string(format!("/sys/module/fuse/parameters/{file}")).ok()?;
            Some((key.to_owned(), value.trim().parse::<u64>().ok()?.into()))
        })
        .chain(proc::sysctl("fs/fuse/max_pages_limit").map(|pages| ("fs.fuse.max_pages_limit".to_owned(), pages.into())))
        .collect()
}
