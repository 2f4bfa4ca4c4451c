//! What docs/reference/mechanisms.md says of all mechanisms and no other suite shows, one file a column: each object is
//! looked at from outside, by system calls of the test, or made by a program that knows nothing of the service.

mod attaching;
mod descriptors;
mod events;
mod lists;
mod nodes;
mod objects;
mod relays;
mod waits;

use std::collections::BTreeMap;
use std::path::Path;

use ipc_blackbox::{Client, integer};
use zbus::OwnedVariant;

const DEFAULT: u32 = u32::MAX;

type Row = BTreeMap<String, OwnedVariant>;

async fn inspect(client: &Client, path: &str) -> Row {
    client.call(path, "Endpoint", "Inspect", &()).await.expect("Inspect")
}

async fn id_of(client: &Client, path: &str) -> i64 {
    integer(&inspect(client, path).await["id"])
}

/// The columns of a mechanism's List(), with their types, as its reference page says.
fn columns(mechanism: &str) -> BTreeMap<String, String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../docs/reference/{mechanism}.md"));
    let text = std::fs::read_to_string(&page).expect("a reference page");
    let table = text.split_once("## Columns of List").expect("a table of columns").1;
    let cells = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | `"));
    cells.filter_map(|(key, rest)| Some((key.to_owned(), rest.split_once('`')?.0.to_owned()))).collect()
}

/// That a row has the columns of the reference page, and no others, in their types.
#[track_caller]
fn assert_documented(mechanism: &str, row: &Row) {
    let columns = columns(mechanism);
    for (key, value) in row {
        let kind = columns.get(key).unwrap_or_else(|| panic!("{mechanism} has no column {key}: {row:?}"));
        let found = value.value_signature().to_string();
        // Names that are no UTF-8 are bytes.
        assert!(*kind == found || (kind == "s" && found == "ay"), "{mechanism} {key}: {found}, not {kind}");
    }
}
