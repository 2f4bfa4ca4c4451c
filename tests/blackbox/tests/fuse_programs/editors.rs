//! Programs that replace files: editors and rsync. Who writes in place can, who renames a new file into place
//! cannot, and says so.

use ipc_blackbox::Mount;
use ipc_harness::{need_tool, or_skip};

use crate::{live, refused};

/// Nothing of their own is left beside the file.
fn alone(mount: &Mount) {
    assert_eq!(mount.sh("ls -A"), "words\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vim_writes_in_place_however_it_is_set() {
    or_skip!(need_tool("vim.tiny"));
    let (_stage, mount) = or_skip!(live("").await);
    let mut text = "line\n".to_owned();
    mount.publish_text("words", &text).await;
    for (number, set) in [
        "",
        "set nobackup nowritebackup",
        "set backup backupcopy=yes backupdir=..",
        "set backup backupcopy=no backupdir=.",
        "set writebackup backupcopy=auto backupdir=.",
        "set noswapfile",
        "set directory=.",
        "set fsync",
    ]
    .iter()
    .enumerate()
    {
        let vim =
            format!("vim.tiny -es -N -u NONE -i NONE -c '{set}' -c '$s/line/line {number}/' -c wq words");
        mount.sh(&format!("{vim} < /dev/null"));
        text = text.replace("line\n", &format!("line {number}\n"));
        assert_eq!(mount.sh("cat words"), text, "{set}");
        alone(&mount);
        text.push_str("line\n");
        mount.sh("echo line >> words");
    }
    // What is published meanwhile is what vim asks about before it overwrites it: no silent loss.
    let mtime = mount.sh("stat -c %.9Y words");
    mount.publish_text("words", "other\n").await;
    assert_ne!(mount.sh("stat -c %.9Y words"), mtime);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_renames_into_place_may_not() {
    let (_stage, mount) = or_skip!(live("").await);
    mount.publish_text("words", "one\n").await;
    refused(&mount, "sed -i s/one/two/ words", "Operation not permitted");
    refused(&mount, "cp words ../new; mv ../new words", "Operation not permitted");
    refused(
        &mount,
        "cp --backup=simple ../live/words ../x; cp --backup=simple ../x words",
        "Operation not permitted",
    );
    let replace = "
open('../new', 'w').write('two')
for call in (lambda: os.replace('../new', 'words'), lambda: os.rename('words', 'old'), lambda: open('.words.tmp', 'w'),
             lambda: os.link('words', 'words~')):
    try: call()
    except OSError as error: print(error.strerror)
os.remove('../new')
";
    // Another file system: rename(2) itself says so, and those who copy instead write in place.
    let said = mount.python(replace, &[]).finish().success();
    let not_permitted = "Operation not permitted\n";
    assert_eq!(said, format!("Invalid cross-device link\n{}", not_permitted.repeat(3)));
    assert_eq!(mount.sh("cat words"), "one\n");
    // The ways that are left.
    assert_eq!(mount.sh("sed s/one/two/ words > ../new; cat ../new > words; rm ../new; cat words"), "two\n");
    assert_eq!(mount.sh("sed -n 'p; s/two/three/w /dev/stdout' words"), "two\nthree\n");
    alone(&mount);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rsync_copies_out_and_in_place() {
    or_skip!(need_tool("rsync"));
    let (_stage, mount) = or_skip!(live("").await);
    let bytes: Vec<u8> = (0..200_000u32).map(|n| (n * 31 % 253) as u8).collect();
    mount.publish("words", &bytes).await;
    mount.sh("rsync -a words ../copy; cmp words ../copy; rsync -a --checksum --inplace words ../copy");
    mount.sh("printf new > ../copy; touch -d @99 ../copy");
    refused(&mount, "rsync ../copy words", "Operation not permitted");
    alone(&mount);
    mount.sh("rsync -a --inplace ../copy words");
    assert_eq!(mount.sh("cat words; stat -c ' %Y' words"), "new 99\n");
    // The changed blocks only.
    mount.publish("words", &bytes).await;
    mount.sh("cp words ../copy; printf XX | dd of=../copy bs=1 seek=150000 conv=notrunc status=none");
    mount.sh("rsync --inplace --no-whole-file --ignore-times ../copy words; cmp words ../copy");
    mount.sh("echo more >> ../copy; rsync --append-verify ../copy words; cmp words ../copy");
    mount.sh("mkdir ../from; echo a > ../from/words; echo b > ../from/unknown");
    mount.sh("rsync -r --inplace --existing ../from/ ./");
    refused(&mount, "rsync -r --inplace ../from/ ./", "Operation not permitted");
    assert_eq!(mount.sh("cat words"), "a\n");
    mount.sh("mkdir ../none; rsync -r --existing --delete ../none/ ./ || true");
    alone(&mount);
}
