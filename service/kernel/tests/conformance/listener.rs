//! Listeners: connections are taken one by one, and each is an endpoint of its own.

use std::thread;

use ipc_kernel::{
    Dict, Endpoint,
    blocked::Sent,
    shape::{Listener, Outgoing, Shape},
};

use crate::{
    driver::{PATIENCE, finish, must_wait, wait},
    fixtures::LISTENERS,
    making::{Shared, attached},
    suite::{self, each},
};

fn listener(endpoint: &dyn Endpoint) -> &dyn Listener {
    endpoint.listener().expect("the fixture makes a listener")
}

fn accept(endpoint: &dyn Endpoint) -> Box<dyn Endpoint> {
    finish("accepting", || listener(endpoint).accept()).expect("accepting")
}

fn connect(endpoint: &dyn Endpoint) -> Box<dyn Endpoint> {
    attached(&endpoint.address().to_string())
}

/// Sends from one end to the other, whatever shape they have.
fn talk(from: &dyn Endpoint, to: &dyn Endpoint, text: &[u8]) {
    let received = match (from.stream(), to.stream(), from.messages(), to.messages()) {
        (Some(from), Some(to), ..) => {
            let written = finish("writing", || from.write(text)).expect("writing");
            assert_eq!(written, text.len());
            finish("reading", || to.read(100)).expect("reading")
        }
        (.., Some(from), Some(to)) => {
            let message = Outgoing { data: text, attributes: &Dict::new(), fds: &[], sent: &Sent::default() };
            finish("sending", || from.send(message)).expect("sending");
            finish("receiving", || to.receive(&Dict::new())).expect("receiving").data
        }
        _ => panic!("the two ends of a connection have different shapes"),
    };
    assert_eq!(received, text);
}

#[test]
fn accept_waits_for_a_connection() {
    each(Shape::Listener, LISTENERS, |row, scratch| {
        let server = (row.make)(scratch);
        let readiness = must_wait("accepting without a client", listener(&*server).accept());
        let client = connect(&*server);
        assert!(wait(readiness, PATIENCE), "the readiness must come with a connection");
        let accepted = accept(&*server);
        talk(&*client, &*accepted, b"ping");
        talk(&*accepted, &*client, b"pong");
        must_wait("accepting again", listener(&*server).accept());
    });
}

#[test]
fn connections_are_separate() {
    each(Shape::Listener, LISTENERS, |row, scratch| {
        let server = (row.make)(scratch);
        let clients = [connect(&*server), connect(&*server)];
        let accepted = [accept(&*server), accept(&*server)];
        for (n, (client, accepted)) in clients.iter().zip(&accepted).enumerate() {
            talk(&**client, &**accepted, format!("from {n}").as_bytes());
        }
        for (n, (client, accepted)) in clients.iter().zip(&accepted).enumerate() {
            talk(&**accepted, &**client, format!("to {n}").as_bytes());
        }
    });
}

#[test]
fn what_is_accepted_says_who_it_is() {
    each(Shape::Listener, LISTENERS, |row, scratch| {
        let server = (row.make)(scratch);
        assert!(server.stream().is_none() && server.messages().is_none(), "a listener carries no data");
        let client = connect(&*server);
        let accepted = accept(&*server);
        assert!(accepted.listener().is_none(), "a connection does not listen");
        for end in [&client, &accepted] {
            assert_eq!(end.shapes(), [row.rules.accepted]);
            let state = end.inspect().expect("inspect");
            assert!(state.keys().any(|key| key.starts_with("peer")), "inspect must tell the peer: {state:?}");
        }
        assert!(!server.inspect().expect("inspect").is_empty());
    });
}

#[test]
fn concurrent_accepts_get_one_each() {
    each(Shape::Listener, LISTENERS, |row, scratch| {
        let server = (row.make)(scratch);
        thread::scope(|scope| {
            let accepts: Vec<_> = (0..4).map(|_| scope.spawn(|| accept(&*server))).collect();
            let clients: Vec<_> = (0..4).map(|_| connect(&*server)).collect();
            let accepted: Vec<_> = accepts.into_iter().map(|one| one.join().expect("accept")).collect();
            for (n, accepted) in accepted.iter().enumerate() {
                let text = format!("connection {n}").into_bytes();
                match accepted.stream() {
                    Some(stream) => drop(finish("writing", || stream.write(&text)).expect("writing")),
                    None => {
                        let messages = accepted.messages().expect("stream or messages");
                        let message = Outgoing {
                            data: &text,
                            attributes: &Dict::new(),
                            fds: &[],
                            sent: &Sent::default(),
                        };
                        finish("sending", || messages.send(message)).expect("sending");
                    }
                }
            }
            let mut texts: Vec<Vec<u8>> = clients
                .iter()
                .map(|client| match (client.stream(), client.messages()) {
                    (Some(stream), _) => finish("reading", || stream.read(100)).expect("reading"),
                    (_, Some(messages)) => {
                        finish("receiving", || messages.receive(&Dict::new())).expect("receiving").data
                    }
                    _ => panic!("stream or messages"),
                })
                .collect();
            texts.sort();
            let expected: Vec<_> = (0..4).map(|n| format!("connection {n}").into_bytes()).collect();
            assert_eq!(texts, expected);
        });
    });
}

#[test]
fn a_closed_listener_refuses_and_leaves_connections_alone() {
    each(Shape::Listener, LISTENERS, |row, scratch| {
        let server: Shared = (row.make)(scratch);
        let address = server.address().to_string();
        let client = connect(&*server);
        let accepted = accept(&*server);
        drop(server);
        let refused = suite::attach(&address);
        let error = refused.err().expect("connecting to a closed listener must fail");
        assert!(error.text.len() > 20, "the error says too little: {error}");
        talk(&*client, &*accepted, b"still here");
        talk(&*accepted, &*client, b"and here");
    });
}
