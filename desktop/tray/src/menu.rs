//! The state as a menu, and as icon and tooltip.
//!
//! Nothing is done here: what the user chooses goes to [`crate::watcher`].

use ksni::{
    MenuItem, Status, ToolTip,
    menu::{CheckmarkItem, StandardItem, SubMenu},
};
use tokio::sync::mpsc::Sender;

use crate::{
    commands::Command,
    state::{Service, State, size},
};

/// More of a kind are counted, not shown.
const SHOWN: usize = 15;

pub struct Tray {
    pub state: State,
    pub notify: bool,
    commands: Sender<Command>,
}

impl Tray {
    pub fn new(commands: Sender<Command>, notify: bool) -> Self {
        Self { state: State::default(), notify, commands }
    }

    fn send(&self, command: Command) {
        // Full: the user clicks faster than the service answers, and sees that nothing has changed yet.
        let _ = self.commands.try_send(command);
    }
}

impl ksni::Tray for Tray {
    const MENU_ON_ACTIVATE: bool = true;

    fn id(&self) -> String {
        "org.example.IPC.Tray".to_owned()
    }

    fn title(&self) -> String {
        "Kernel events".to_owned()
    }

    fn icon_name(&self) -> String {
        "org.example.IPC-symbolic".to_owned()
    }

    /// For a machine where the icon is not installed.
    fn icon_pixmap(&self) -> Vec<ksni::Icon> {
        vec![icon::drawn(22), icon::drawn(44)]
    }

    fn status(&self) -> Status {
        match self.state.service {
            Service::Present(_) => Status::Active,
            _ => Status::Passive,
        }
    }

    fn tool_tip(&self) -> ToolTip {
        let title = self.title();
        ToolTip {
            icon_name: self.icon_name(),
            icon_pixmap: Vec::new(),
            title,
            description: self.state.summary(),
        }
    }

    fn menu_about_to_show(&mut self) {
        self.send(Command::Refresh);
    }

    fn menu(&self) -> Vec<MenuItem<Self>> {
        let mut menu = Vec::new();
        match &self.state.service {
            Service::Unknown => menu.push(line("Connecting…")),
            Service::Absent(why) => menu.extend(why.lines().map(line)),
            Service::Present(_) => {
                menu.extend(self.links());
                menu.push(MenuItem::Separator);
                menu.push(list("Recent events", self.state.feed.iter().map(|event| line(event)).collect()));
                menu.push(list("Relays", self.relays()));
                menu.push(list("Endpoints", self.endpoints()));
                menu.push(MenuItem::Separator);
                menu.push(list("Tell me when a process ends", self.processes()));
                menu.push(list("Watch a folder", self.folders()));
            }
        }
        menu.push(MenuItem::Separator);
        menu.push(
            CheckmarkItem {
                label: "Notifications".to_owned(),
                checked: self.notify,
                activate: Box::new(|tray: &mut Self| {
                    tray.notify = !tray.notify;
                    tray.send(Command::Notify(tray.notify));
                }),
                ..Default::default()
            }
            .into(),
        );
        if let Service::Present(bus) = &self.state.service {
            menu.push(line(&format!("Service on the {bus}")));
        }
        menu.push(
            StandardItem {
                label: "Quit".to_owned(),
                icon_name: "application-exit".to_owned(),
                activate: Box::new(|tray: &mut Self| tray.send(Command::Quit)),
                ..Default::default()
            }
            .into(),
        );
        menu
    }
}

impl Tray {
    fn links(&self) -> Vec<MenuItem<Self>> {
        let links = self.state.links.values().filter(|link| link.name != "lo").take(SHOWN);
        let links: Vec<_> = links
            .map(|link| {
                // Of several, the first says enough; the others are for those who look closer.
                let addresses: Vec<_> = link.addresses.iter().map(|address| line(address)).collect();
                match link.addresses.first() {
                    None => line(&format!("{}: {}", link.name, link.state)),
                    Some(first) if addresses.len() == 1 => {
                        line(&format!("{}: {}, {first}", link.name, link.state))
                    }
                    Some(first) => list(&format!("{}: {}, {first} …", link.name, link.state), addresses),
                }
            })
            .collect();
        if links.is_empty() { vec![line("No network interface but lo")] } else { links }
    }

    fn relays(&self) -> Vec<MenuItem<Self>> {
        let relays = self.state.relays.iter().take(SHOWN);
        relays
            .map(|(path, relay)| {
                let (source, sink) = (self.state.name(&relay.source), self.state.name(&relay.sink));
                let moved = format!("{}, {} moved, {}/s", relay.state, size(relay.bytes), size(relay.rate));
                let paused = relay.state == "paused";
                let turn = if paused { Command::Resume(path.clone()) } else { Command::Pause(path.clone()) };
                list(
                    &format!("{source} → {sink}"),
                    vec![
                        line(&moved),
                        choice(if paused { "Resume" } else { "Pause" }, turn),
                        choice("Stop", Command::Stop(path.clone())),
                    ],
                )
            })
            .collect()
    }

    fn endpoints(&self) -> Vec<MenuItem<Self>> {
        let all = &self.state.endpoints;
        let shown = all.iter().take(SHOWN);
        let mut menu: Vec<_> = shown
            .map(|(path, endpoint)| {
                let label = match endpoint.waiting {
                    Some(waiting) => format!("{}: {waiting}", endpoint.address),
                    None => endpoint.address.clone(),
                };
                list(&label, vec![choice("Close", Command::Close(path.clone()))])
            })
            .collect();
        if all.len() > SHOWN {
            menu.push(line(&format!("and {} more", all.len() - SHOWN)));
        }
        menu
    }

    fn processes(&self) -> Vec<MenuItem<Self>> {
        let awaited = self.state.awaited.iter().map(|(endpoint, process)| {
            let stop = Command::Close(endpoint.clone());
            checked(&format!("{} ({})", process.command, process.pid), true, stop)
        });
        let known = |pid| self.state.awaited.values().any(|process| process.pid == pid);
        let others = self.state.processes.iter().filter(|process| !known(process.pid)).take(SHOWN);
        awaited
            .chain(others.map(|process| {
                checked(
                    &format!("{} ({})", process.command, process.pid),
                    false,
                    Command::Await(process.clone()),
                )
            }))
            .collect()
    }

    fn folders(&self) -> Vec<MenuItem<Self>> {
        let watched =
            |folder: &str| self.state.folders.iter().find(|(_, path)| *path == folder).map(|(path, _)| path);
        crate::commands::folders()
            .into_iter()
            .map(|folder| match watched(&folder) {
                Some(endpoint) => checked(&folder, true, Command::Close(endpoint.clone())),
                None => checked(&folder, false, Command::Watch(folder.clone())),
            })
            .collect()
    }
}

/// An underscore is an access key in menus, unless it stands twice.
fn label(text: &str) -> String {
    text.replace('_', "__")
}

fn line(text: &str) -> MenuItem<Tray> {
    StandardItem { label: label(text), enabled: false, ..Default::default() }.into()
}

fn choice(text: &str, command: Command) -> MenuItem<Tray> {
    let activate = Box::new(move |tray: &mut Tray| tray.send(command.clone()));
    StandardItem { label: label(text), activate, ..Default::default() }.into()
}

fn checked(text: &str, checked: bool, command: Command) -> MenuItem<Tray> {
    let activate = Box::new(move |tray: &mut Tray| tray.send(command.clone()));
    CheckmarkItem { label: label(text), checked, activate, ..Default::default() }.into()
}

fn list(text: &str, submenu: Vec<MenuItem<Tray>>) -> MenuItem<Tray> {
    SubMenu { label: label(text), enabled: !submenu.is_empty(), submenu, ..Default::default() }.into()
}

/// Two ends and what goes between them.
mod icon {
    pub fn drawn(side: i32) -> ksni::Icon {
        let unit = side as f32 / 22.0;
        let data = (0..side * side)
            .flat_map(|pixel| {
                let (x, y) = ((pixel % side) as f32 / unit, (pixel / side) as f32 / unit);
                let near = |cx: f32, cy: f32| (x - cx).hypot(y - cy) < 4.0;
                let between = (y - 11.0).abs() < 1.2 && x > 5.0 && x < 17.0;
                if near(5.0, 11.0) || near(17.0, 11.0) || between { [255, 224, 224, 224] } else { [0; 4] }
            })
            .collect();
        ksni::Icon { width: side, height: side, data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_underscore_is_no_access_key() {
        assert_eq!(label("veth_a"), "veth__a");
    }

    #[test]
    fn icons_have_four_bytes_a_pixel() {
        let icon = icon::drawn(22);
        assert_eq!(icon.data.len(), 22 * 22 * 4);
        assert!(
            icon.data.chunks(4).any(|pixel| pixel[0] == 255)
                && icon.data.chunks(4).any(|pixel| pixel[0] == 0)
        );
    }
}
