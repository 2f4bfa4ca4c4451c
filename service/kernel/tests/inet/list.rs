//! The machine's sockets, compared with what ss(8) prints.

use std::{
    collections::BTreeSet,
    net::{TcpStream, UdpSocket},
    process::Command,
};

use ipc_kernel::{Dict, Value, mechanisms::inet::DESCRIPTOR};

use crate::support::{accept, attach, create, has_ipv6, number, port, text};

/// Protocol, state, queues, both ends: as ss prints them.
type Row = (String, String, String, String, String, String);

fn row_of(dict: &Dict) -> Row {
    let state = match text(dict, "state").as_str() {
        "listening" => "LISTEN".to_owned(),
        "unconnected" => "UNCONN".to_owned(),
        "established" => "ESTAB".to_owned(),
        other => other.to_uppercase(),
    };
    let end = |host: String, port: String| {
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    };
    let peer = match dict.contains_key("peer-port") {
        true => end(text(dict, "peer-host"), number(dict, "peer-port").to_string()),
        false if text(dict, "family") == "ipv4" => "0.0.0.0:*".to_owned(),
        false => "[::]:*".to_owned(),
    };
    (
        text(dict, "protocol"),
        state,
        number(dict, "receive-queue").to_string(),
        number(dict, "send-queue").to_string(),
        end(text(dict, "local-host"), number(dict, "local-port").to_string()),
        peer,
    )
}

#[test]
fn the_list_is_what_ss_shows() {
    let listener = create("tcp:backlog=17").unwrap();
    let waiting = TcpStream::connect(("127.0.0.1", port(&*listener))).unwrap();
    let _waiting_too = attach(&listener.address().to_string()).unwrap();
    let accepted = accept(&*listener).unwrap();
    std::io::Write::write_all(&mut &waiting, b"unread").unwrap();
    let bound = create("udp:").unwrap();
    let connected = attach(&bound.address().to_string()).unwrap();
    let six = has_ipv6().then(|| [create("tcp:family=ipv6").unwrap(), create("udp:host=::1").unwrap()]);
    let mut mine: Vec<u16> = vec![port(&*listener), port(&*bound), port(&*connected)];
    mine.extend(six.iter().flatten().map(|endpoint| port(&**endpoint)));

    let rows = DESCRIPTOR.objects().unwrap();
    let concerns_me = |port: i128| mine.iter().any(|mine| i128::from(*mine) == port);
    let ours: Vec<&Dict> = rows
        .iter()
        .filter(|row| {
            concerns_me(number(row, "local-port"))
                || row.get("peer-port").and_then(Value::integer).is_some_and(concerns_me)
        })
        .collect();
    let listed: BTreeSet<Row> = ours.iter().map(|row| row_of(row)).collect();
    assert!(listed.len() >= 7, "{listed:?}");

    match Command::new("ss").arg("-tuanH").output() {
        Err(error) => eprintln!("SKIPPED: ss does not start: {error}"),
        Ok(output) => {
            let output = String::from_utf8(output.stdout).unwrap();
            let port_of = |end: &str| end.rsplit(':').next().and_then(|port| port.parse::<i128>().ok());
            let shown: BTreeSet<Row> = output
                .lines()
                .filter_map(|line| {
                    let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
                    let [protocol, state, receive, send, local, peer] = words.try_into().ok()?;
                    let is_mine =
                        [&local, &peer].into_iter().any(|end| port_of(end).is_some_and(concerns_me));
                    is_mine.then_some((protocol, state, receive, send, local, peer))
                })
                .collect();
            assert_eq!(listed, shown);
        }
    }

    let me = std::process::id();
    for row in &ours {
        let Some(Value::Dicts(holders)) = row.get("holders") else { panic!("{row:?}") };
        // What nobody has accepted yet belongs to nobody.
        if number(row, "inode") != 0 {
            assert!(holders.iter().any(|holder| number(holder, "pid") == me.into()), "{row:?}");
        }
        for key in row.keys() {
            assert!(DESCRIPTOR.columns.iter().any(|column| column.key == key), "{key} is no column");
        }
    }
    let row = ours.iter().find(|row| text(row, "state") == "listening").unwrap();
    assert_eq!(text(row, "address"), listener.address().to_string());
    assert_eq!(number(&accepted.inspect().unwrap(), "queued-in"), 6);
    assert_eq!(number(&listener.inspect().unwrap(), "waiting"), 1);
    drop::<Option<[Box<dyn ipc_kernel::Endpoint>; 2]>>(six);
}

#[test]
fn attach_finds_what_is_listed() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let rows = DESCRIPTOR.objects().unwrap();
    let row = rows
        .iter()
        .find(|row| text(row, "protocol") == "udp" && number(row, "local-port") == port.into())
        .unwrap();
    let endpoint = attach(&text(row, "address")).unwrap();
    crate::support::send(&*endpoint, b"found", None).unwrap();
    assert_eq!(socket.recv(&mut [0; 10]).unwrap(), 5);
}
