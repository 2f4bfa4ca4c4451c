//! A screen in memory (Xvfb), with a mouse and a keyboard: what is on it is waited for by the damage that the X server
//! reports, and looked at pixel by pixel.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use ipc_harness::{Process, Unavailable, need_tool, patience};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use x11rb::connection::Connection;
use x11rb::protocol::damage::{ConnectionExt as _, Damage, ReportLevel};
use x11rb::protocol::xproto::{
    BUTTON_PRESS_EVENT, BUTTON_RELEASE_EVENT, ConnectionExt as _, ImageFormat, KEY_PRESS_EVENT,
    KEY_RELEASE_EVENT, MOTION_NOTIFY_EVENT, Window,
};
use x11rb::protocol::xtest::ConnectionExt as _;
use x11rb::rust_connection::RustConnection;

/// What a keyboard has (X11's keysymdef.h).
pub const UP: u32 = 0xff52;
pub const RETURN: u32 = 0xff0d;

const WIDTH: u16 = 800;
const HEIGHT: u16 = 600;

/// A colour: blue, green, red.
pub type Pixel = [u8; 3];

/// A screen. Field order is drop order.
pub struct Screen {
    connection: RustConnection,
    root: Window,
    damage: Damage,
    /// Its name, for `DISPLAY`.
    pub display: String,
    _server: Process,
}

/// What was on it.
pub struct Picture(Vec<u8>);

/// A part of a picture, its right and lower ends not included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    pub left: usize,
    pub top: usize,
    pub right: usize,
    pub bottom: usize,
}

impl Screen {
    pub fn start() -> Result<Screen, Unavailable> {
        need_tool("Xvfb")?;
        let mut server = Command::new("Xvfb");
        // It chooses a number that is free, and tells it when it listens.
        server.args(["-displayfd", "1", "-nolisten", "tcp", "-screen", "0", &format!("{WIDTH}x{HEIGHT}x24")]);
        let server = Process::spawn(&mut server);
        let display = format!(":{}", server.wait_for(|line| !line.is_empty()).trim());
        let (connection, _) = x11rb::connect(Some(&display)).expect("a server that has said that it listens");
        let root = connection.setup().roots[0].root;
        connection.damage_query_version(1, 1).expect("sent").reply().expect("the extension DAMAGE");
        let damage = connection.generate_id().expect("a number");
        connection
            .damage_create(damage, root, ReportLevel::NON_EMPTY)
            .expect("sent")
            .check()
            .expect("damage");
        Ok(Screen { connection, root, damage, display, _server: server })
    }

    /// Waits until the screen is as wanted. Leaves a picture of what was seen last, also when it never comes.
    #[track_caller]
    pub fn until<T>(&self, name: &str, mut judge: impl FnMut(&Picture) -> Option<T>) -> T {
        let deadline = Instant::now() + patience();
        loop {
            // Before the look: what is drawn after it is reported anew.
            self.connection.damage_subtract(self.damage, 0u32, 0u32).expect("sent");
            let picture = self.picture();
            if let Some(answer) = judge(&picture) {
                picture.save(name);
                return answer;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                panic!("the screen is never as wanted; it is as in {}", picture.save(name).display());
            }
            self.damaged(left);
        }
    }

    /// Waits for a report.
    fn damaged(&self, bound: Duration) {
        let timeout = Timespec { tv_sec: bound.as_secs() as _, tv_nsec: bound.subsec_nanos().into() };
        let mut reported = false;
        // Reports that came before the picture are with the connection; only then is the socket worth a wait.
        while self.connection.poll_for_event().expect("the server goes on").is_some() {
            reported = true;
        }
        if !reported {
            let mut fds = [PollFd::from_borrowed_fd(self.connection.stream().as_fd(), PollFlags::IN)];
            poll(&mut fds, Some(&timeout)).expect("poll(2) of a socket");
        }
    }

    /// What is on it now.
    pub fn picture(&self) -> Picture {
        let image =
            self.connection.get_image(ImageFormat::Z_PIXMAP, self.root, 0, 0, WIDTH, HEIGHT, u32::MAX);
        Picture(image.expect("sent").reply().expect("the image of the root window").data)
    }

    /// The first button of the mouse, on the middle of this part.
    pub fn click(&self, area: Area) {
        let x = ((area.left + area.right) / 2) as i16;
        let y = ((area.top + area.bottom) / 2) as i16;
        self.fake(MOTION_NOTIFY_EVENT, 0, x, y);
        self.fake(BUTTON_PRESS_EVENT, 1, 0, 0);
        self.fake(BUTTON_RELEASE_EVENT, 1, 0, 0);
    }

    /// A key, pressed and released.
    pub fn press(&self, keysym: u32) {
        let setup = self.connection.setup();
        let (first, count) = (setup.min_keycode, setup.max_keycode - setup.min_keycode + 1);
        let map =
            self.connection.get_keyboard_mapping(first, count).expect("sent").reply().expect("a keyboard");
        let mut keys = map.keysyms.chunks(map.keysyms_per_keycode.into());
        let place = keys.position(|syms| syms.contains(&keysym)).expect("a key that keyboards have");
        let code = first + u8::try_from(place).expect("no more than 255 keys");
        self.fake(KEY_PRESS_EVENT, code, 0, 0);
        self.fake(KEY_RELEASE_EVENT, code, 0, 0);
    }

    fn fake(&self, event: u8, detail: u8, x: i16, y: i16) {
        let sent = self.connection.xtest_fake_input(event, detail, 0, self.root, x, y, 0);
        sent.expect("sent").check().expect("the extension XTEST");
    }
}

impl Picture {
    fn pixel(&self, x: usize, y: usize) -> Pixel {
        let at = (y * usize::from(WIDTH) + x) * 4;
        [self.0[at], self.0[at + 1], self.0[at + 2]]
    }

    /// The smallest part with all pixels that `strange` wants, among the first `rows`; none if there are none.
    pub fn area(&self, rows: usize, strange: impl Fn(Pixel) -> bool) -> Option<Area> {
        let mut found: Option<Area> = None;
        for (x, y) in (0..rows).flat_map(|y| (0..usize::from(WIDTH)).map(move |x| (x, y))) {
            if strange(self.pixel(x, y)) {
                let before = found.unwrap_or(Area { left: x, top: y, right: x, bottom: y });
                found = Some(Area {
                    left: before.left.min(x),
                    top: before.top.min(y),
                    right: before.right.max(x + 1),
                    bottom: before.bottom.max(y + 1),
                });
            }
        }
        found
    }

    /// How many pixels below the first `rows` are others in the other one.
    pub fn differs(&self, other: &Picture, rows: usize) -> usize {
        let (one, other) = (self.0.chunks(4), other.0.chunks(4));
        one.zip(other).skip(rows * usize::from(WIDTH)).filter(|(a, b)| a[..3] != b[..3]).count()
    }

    fn save(&self, name: &str) -> PathBuf {
        let path = ipc_desktop::output().join(format!("{name}.png"));
        fs::create_dir_all(ipc_desktop::output()).expect("a directory below target");
        let mut encoder =
            png::Encoder::new(File::create(&path).expect("a file below target"), WIDTH.into(), HEIGHT.into());
        encoder.set_color(png::ColorType::Rgb);
        let pixels: Vec<u8> = self.0.chunks(4).flat_map(|pixel| [pixel[2], pixel[1], pixel[0]]).collect();
        let mut writer = encoder.write_header().expect("a file below target");
        writer.write_image_data(&pixels).expect("a file below target");
        path
    }
}
