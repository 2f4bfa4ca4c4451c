//! The two decoders of the protocol between front and spawner.

use ipc_spawner::protocol::{GROUPS_MAX, NAME_MAX, REPLY_SIZE, REQUEST_SIZE, Reply, Request};

pub fn spawner(input: &[u8]) {
    request(input);
    reply(input);
    // Of the right size, too: the fuzzer need not find out which that is.
    let mut sized = input.to_vec();
    sized.resize(REQUEST_SIZE, 0);
    request(&sized);
    sized.resize(REPLY_SIZE, 0);
    reply(&sized);
}

fn request(bytes: &[u8]) {
    let Ok(request) = Request::decode(bytes) else { return };
    assert_eq!(bytes.len(), REQUEST_SIZE);
    if let Request::Start { name, .. } | Request::Kill { name } = &request {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        assert!((1..=NAME_MAX).contains(&name.len()) && name.bytes().all(plain), "{name:?}");
    }
    if let Request::Start { identity, .. } = &request {
        assert!(identity.groups.len() <= GROUPS_MAX);
    }
    assert_eq!(Request::decode(&request.encode()), Ok(request));
}

fn reply(bytes: &[u8]) {
    let Some(reply) = Reply::decode(bytes) else { return };
    assert_eq!(bytes.len(), REPLY_SIZE);
    assert_eq!(Reply::decode(&reply.encode()), Some(reply));
}
