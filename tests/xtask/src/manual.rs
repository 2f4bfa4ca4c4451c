//! The manual pages, `ipcd.1` and `ipc-tray.1`, from the command lines that the programs themselves parse.

use anyhow::Result;
use clap::{Command, CommandFactory};
use clap_mangen::Man;

// The programs are no libraries; their command lines stand in files that need nothing else of them.
#[allow(dead_code, reason = "the program uses the rest")]
#[path = "../../../service/daemon/src/arguments.rs"]
mod arguments;
#[allow(dead_code, reason = "the program uses the rest")]
#[path = "../../../desktop/tray/src/arguments.rs"]
mod tray;

const ABOUT: &str = "every IPC mechanism of the Linux kernel over D-Bus";
const TRAY: &str = "what the kernel tells, endpoints and relays, in the tray of a panel";

/// What no option says.
const MORE: &str = r#".SH FILES
.TP
\fI$XDG_CONFIG_HOME/ipcd.toml\fR, \fI/etc/ipcd.toml\fR
The configuration; on the system bus the second only.
.TP
\fI$XDG_CONFIG_HOME/ipcd/relays.d/*.toml\fR, \fI/etc/ipcd/relays.d/*.toml\fR
Endpoints and relays that are to be there, on the session bus or where no bus was chosen. Of two files with the same name
the first counts; a link to /dev/null masks the other. Changes are followed; SIGHUP reads all files again, and tries at
once what waits or was stopped. The format is described in /usr/share/doc/ipcd/reference/relays.d.md.
.TP
\fI/usr/share/dbus\-1/system.d/org.example.IPC.conf\fR
What the system bus lets through. Change it by a file in /etc/dbus\-1/system.d; examples are in
/usr/share/doc/ipcd/examples.
.SH SEE ALSO
.BR busctl (1),
.BR dbus\-daemon (1),
.BR sysvipc (7),
.BR mq_overview (7),
.BR unix (7)
"#;

const MORE_OF_TRAY: &str = r#".SH FILES
.TP
\fI/usr/share/applications/org.example.IPC.Tray.desktop\fR
Starts it from menus; a copy in ~/.config/autostart starts it with the session.
.SH SEE ALSO
.BR ipcd (1)
"#;

/// Each page below docs, with its text.
pub fn pages() -> Result<[(String, String); 2]> {
    Ok([
        ("ipcd.1".to_owned(), page("ipcd", ABOUT, arguments::Arguments::command())? + MORE),
        ("ipc-tray.1".to_owned(), page("ipc-tray", TRAY, tray::Arguments::command())? + MORE_OF_TRAY),
    ])
}

fn page(name: &'static str, about: &'static str, program: Command) -> Result<String> {
    // Name and description would be those of the crate that includes the file. What is hidden (the parts that
    // units start) stays so: there is no page for it to lead to.
    let command = Command::new(name)
        .about(about)
        .long_about(program.get_long_about().map(ToString::to_string).unwrap_or_default())
        .version(env!("CARGO_PKG_VERSION"))
        .args(program.get_arguments().filter(|argument| !argument.is_hide_set()).cloned());
    let mut page = Vec::new();
    Man::new(command).manual("User Commands").date("").render(&mut page)?;
    Ok(String::from_utf8(page)?)
}
