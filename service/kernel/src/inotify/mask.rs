//! The words of inotify(7): as the parameters of a watch, as the names in events, and as the
//! bits in between. The constants are those of the manual page without `IN_`.

use std::collections::BTreeMap;

use libc::*;

/// Every event that can be asked for: parameter, name in an event, bit.
const EVENTS: [(&str, &str, u32); 12] = [
    ("access", "ACCESS", IN_ACCESS),
    ("attrib", "ATTRIB", IN_ATTRIB),
    ("close-write", "CLOSE_WRITE", IN_CLOSE_WRITE),
    ("close-nowrite", "CLOSE_NOWRITE", IN_CLOSE_NOWRITE),
    ("create", "CREATE", IN_CREATE),
    ("delete", "DELETE", IN_DELETE),
    ("delete-self", "DELETE_SELF", IN_DELETE_SELF),
    ("modify", "MODIFY", IN_MODIFY),
    ("move-self", "MOVE_SELF", IN_MOVE_SELF),
    ("moved-from", "MOVED_FROM", IN_MOVED_FROM),
    ("moved-to", "MOVED_TO", IN_MOVED_TO),
    ("open", "OPEN", IN_OPEN),
];

/// What the kernel says without being asked.
const RESULTS: [(&str, u32); 4] =
    [("UNMOUNT", IN_UNMOUNT), ("Q_OVERFLOW", IN_Q_OVERFLOW), ("IGNORED", IN_IGNORED), ("ISDIR", IN_ISDIR)];

/// The values of the parameter `events`: every event, then groups of them.
pub const WORDS: &[&str] = &[
    "access",
    "attrib",
    "close-write",
    "close-nowrite",
    "create",
    "delete",
    "delete-self",
    "modify",
    "move-self",
    "moved-from",
    "moved-to",
    "open",
    "all",
    "close",
    "move",
    "written",
];

/// The bits of one of [`WORDS`]; none for any other word.
pub fn bits(word: &str) -> u32 {
    match word {
        "all" => IN_ALL_EVENTS,
        "close" => IN_CLOSE,
        "move" => IN_MOVE,
        // Complete: closed after writing, or written elsewhere and moved to its place.
        "written" => IN_CLOSE_WRITE | IN_MOVED_TO,
        word => EVENTS.iter().find(|event| event.0 == word).map_or(0, |event| event.2),
    }
}

/// The parameters' words for the events in a mask, `all` for all of them.
pub fn words(mask: u32) -> Vec<String> {
    if mask & IN_ALL_EVENTS == IN_ALL_EVENTS {
        return vec!["all".into()];
    }
    EVENTS.iter().filter(|event| mask & event.2 != 0).map(|event| event.0.to_owned()).collect()
}

/// The first of these events that is asked for.
pub fn first(asked: u32, events: &[u32]) -> Option<u32> {
    events.iter().copied().find(|event| asked & event != 0)
}

/// The names of an event's bits, the event before what is said of it.
pub fn names(mask: u32) -> Vec<&'static str> {
    let events = EVENTS.iter().map(|event| (event.1, event.2));
    events.chain(RESULTS).filter(|(_, bit)| mask & bit != 0).map(|(name, _)| name).collect()
}

/// One watch of an inotify instance, as /proc/PID/fdinfo/N shows it (proc_pid_fdinfo(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    pub wd: i32,
    pub inode: u64,
    /// As the kernel numbers devices inside: 12 bits of major, 20 of minor.
    device: u32,
    pub mask: u32,
}

impl Line {
    /// `major:minor`, as in /proc/self/mountinfo.
    pub fn device(self) -> String {
        format!("{}:{}", self.device >> 20, self.device & 0xf_ffff)
    }
}

/// The watches in the text of a fdinfo file. All its numbers are hexadecimal.
pub fn watches(fdinfo: &str) -> Vec<Line> {
    fdinfo.lines().filter_map(|line| watch(line.strip_prefix("inotify ")?)).collect()
}

fn watch(line: &str) -> Option<Line> {
    let fields: BTreeMap<_, _> = line.split(' ').filter_map(|field| field.split_once(':')).collect();
    let number = |key| u64::from_str_radix(fields.get(key)?, 16).ok();
    Some(Line {
        wd: i32::try_from(number("wd")?).ok()?,
        inode: number("ino")?,
        device: u32::try_from(number("sdev")?).ok()?,
        mask: u32::try_from(number("mask")?).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_has_bits_and_all_is_all_of_them() {
        let all =
            WORDS.iter().map(|word| bits(word)).inspect(|bits| assert_ne!(*bits, 0)).fold(0, |a, b| a | b);
        assert_eq!((all, bits("nonsense")), (IN_ALL_EVENTS, 0));
        assert_eq!(words(IN_CLOSE), ["close-write", "close-nowrite"]);
        assert_eq!(words(IN_ALL_EVENTS | IN_ONESHOT), ["all"]);
    }

    #[test]
    fn an_event_is_named_before_its_circumstances() {
        assert_eq!(names(IN_ISDIR | IN_CREATE), ["CREATE", "ISDIR"]);
        assert_eq!(names(IN_ISDIR | IN_UNMOUNT), ["UNMOUNT", "ISDIR"]);
        assert_eq!(names(IN_IGNORED), ["IGNORED"]);
        assert!(names(0).is_empty());
    }

    #[test]
    fn fdinfo_is_hexadecimal() {
        let text = "pos:\t0\nflags:\t04000\nmnt_id:\t17\nino:\t1038\n\
            inotify wd:1a ino:3c4a7 sdev:fe00001 mask:84000fff ignored_mask:0 fhandle-bytes:8 f_handle:a7c4\n\
            inotify wd:oops\n";
        let [line] = watches(text)[..] else { panic!("{:?}", watches(text)) };
        assert_eq!((line.wd, line.inode, line.mask), (0x1a, 0x3c4a7, 0x84000fff));
        assert_eq!(line.device(), "254:1");
    }
}
