//! Hosts, ports and ranges of addresses: how they are written, read and found.
//!
//! A host is a literal (`127.0.0.1`, `::1`, `fe80::1%eth0`) or a name. Names are looked up by the
//! system's resolver, which blocks and knows no timeout: only Create and Attach do that, on the
//! threads that are there for it. Wherever data flows only literals are read.
//!
//! Addresses of IPv4 peers that come in through an IPv6 socket (`::ffff:192.0.2.1`) are shown as
//! what they are, IPv4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs};

use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType};

use crate::{Address, Error, Kind, Parameters, Result, error::Attempted};

/// The longest name that DNS knows, in bytes.
const MAX_NAME: usize = 253;

/// The key `family`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Any,
    Ipv4,
    Ipv6,
}

impl Family {
    pub const WORDS: &[&str] = &["any", "ipv4", "ipv6"];

    pub fn of(parameters: &Parameters) -> Self {
        match parameters.text("family") {
            Some("ipv4") => Self::Ipv4,
            Some("ipv6") => Self::Ipv6,
            _ => Self::Any,
        }
    }

    pub fn admits(self, address: &SocketAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Ipv4 => address.is_ipv4(),
            Self::Ipv6 => address.is_ipv6(),
        }
    }

    pub fn loopback(self) -> IpAddr {
        match self {
            Self::Ipv6 => Ipv6Addr::LOCALHOST.into(),
            _ => Ipv4Addr::LOCALHOST.into(),
        }
    }

    pub fn wildcard(self) -> IpAddr {
        match self {
            Self::Ipv6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => Ipv4Addr::UNSPECIFIED.into(),
        }
    }
}

/// The family of the socket that this address needs.
pub fn family(address: &SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

/// `ipv4` or `ipv6`.
pub fn family_name(address: &SocketAddr) -> &'static str {
    if address.is_ipv4() { "ipv4" } else { "ipv6" }
}

/// All addresses of a host, in the resolver's order (RFC 6724); at least one.
pub fn resolve(host: &str, port: u16, family: Family) -> Result<Vec<SocketAddr>> {
    let found: Vec<SocketAddr> = match literal(host, port)? {
        Some(address) => vec![address],
        None => {
            check_name(host)?;
            (host, port)
                .to_socket_addrs()
                .map_err(|error| {
                    Error::new(
                        Kind::NotFound,
                        format!("cannot find the host {host:?}: {}", resolver_text(&error)),
                    )
                    .help("check the name, /etc/hosts and /etc/resolv.conf, or give an address")
                })?
                .collect()
        }
    };
    let mut admitted: Vec<SocketAddr> = Vec::new();
    for address in found.iter().filter(|address| family.admits(address)) {
        if !admitted.contains(address) {
            admitted.push(*address);
        }
    }
    if admitted.is_empty() {
        let has = found.first().map_or("no", |first| if first.is_ipv4() { "only IPv4" } else { "only IPv6" });
        return Err(Error::new(
            Kind::NotFound,
            format!("the host {host:?} has {has} addresses; choose another value for the key \"family\""),
        ));
    }
    Ok(admitted)
}

/// What can be opened at the first address that allows it; else the first one's error.
pub fn first<T>(addresses: &[SocketAddr], open: impl Fn(&SocketAddr) -> Result<T>) -> Result<T> {
    let mut first_error = None;
    for address in addresses {
        match open(address) {
            Ok(opened) => return Ok(opened),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    // There is at least one address, so there is an error.
    Err(first_error.unwrap_or_else(|| Error::invalid("the host has no address")))
}

/// The address that a literal stands for; `None` where it is a name.
pub fn literal(host: &str, port: u16) -> Result<Option<SocketAddr>> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(Some(SocketAddr::new(address, port)));
    }
    let Some((bare, scope)) = bare.split_once('%') else {
        return Ok(None);
    };
    let Ok(address) = bare.parse::<Ipv6Addr>() else {
        return Err(Error::invalid(format!(
            "the host {host:?} is not valid: before '%' there must be an IPv6 address (fe80::1%eth0)"
        )));
    };
    Ok(Some(SocketAddrV6::new(address, port, 0, interface_index(scope)?).into()))
}

fn check_name(host: &str) -> Result<()> {
    let fits = !host.is_empty() && host.len() <= MAX_NAME;
    if fits && !host.bytes().any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control()) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the key \"host\" must be an address or a name of 1 to {MAX_NAME} bytes without blanks, not {host:?}"
    )))
}

/// What the resolver says, without what the standard library says before it.
fn resolver_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.strip_prefix("failed to lookup address information: ").map(str::to_owned).unwrap_or(text)
}

/// The index of a network interface, from its name or its number.
pub fn interface_index(name: &str) -> Result<u32> {
    if let Ok(index) = name.parse::<u32>() {
        return Ok(index);
    }
    let found = any_socket().and_then(|socket| rustix::net::netdevice::name_to_index(socket, name));
    found.map_err(|errno| {
        Error::new(
            Kind::NotFound,
            format!("there is no network interface {name:?} ({})", crate::error::name(errno)),
        )
        .help("`ip link` lists them")
    })
}

/// The name of a network interface; its number where it has gone.
pub fn interface_name(index: u32) -> String {
    any_socket()
        .and_then(|socket| rustix::net::netdevice::index_to_name(socket, index))
        .unwrap_or_else(|_| index.to_string())
}

/// The calls about interfaces want a socket, whichever.
fn any_socket() -> rustix::io::Result<std::os::fd::OwnedFd> {
    rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
}

/// IPv4 addresses in IPv6 clothes as what they are.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) if address.is_ipv6() => SocketAddr::new(ip.into(), address.port()),
        _ => address,
    }
}

/// The host of an address as `host` is written.
pub fn host(address: &SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => {
            format!("{}%{}", v6.ip(), interface_name(v6.scope_id()))
        }
        other => other.ip().to_string(),
    }
}

/// `host:port` for texts.
pub fn show(address: &SocketAddr) -> String {
    let host = host(address);
    if address.is_ipv6() {
        format!("[{host}]:{}", address.port())
    } else {
        format!("{host}:{}", address.port())
    }
}

/// `tcp:host=…,port=…`.
pub fn write(scheme: &str, address: &SocketAddr) -> Address {
    Address::new(scheme).with("host", host(address)).with("port", address.port().to_string())
}

/// Where a datagram shall go: `udp:host=…,port=…` or `host:port`, literals only.
pub fn destination(text: &str) -> Result<SocketAddr> {
    let invalid = || {
        Error::invalid(format!(
            "the attribute \"address\" must be udp:host=…,port=… or host:port with a literal address \
             ([::1]:5000 for IPv6), not {text:?}"
        ))
    };
    let (host, port) = match text.strip_prefix("udp:") {
        Some(_) => {
            let address = Address::parse(text)?;
            if let Some((key, _)) = address.pairs.iter().find(|(key, _)| key != "host" && key != "port") {
                return Err(Error::invalid(format!(
                    "the attribute \"address\" has the keys host and port, not {key:?}"
                )));
            }
            let value = |wanted: &str| {
                let (_, value) = address.pairs.iter().find(|(key, _)| key == wanted)?;
                String::from_utf8(value.clone()?).ok()
            };
            (value("host").ok_or_else(invalid)?, value("port").ok_or_else(invalid)?)
        }
        None => {
            let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
            // `::1:5000` could be read in two ways.
            if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
                return Err(invalid());
            }
            (host.to_owned(), port.to_owned())
        }
    };
    let port: u16 = port.parse().map_err(|_| invalid())?;
    if port == 0 {
        return Err(Error::invalid("a datagram cannot be sent to port 0"));
    }
    literal(&host, port)?
        .ok_or_else(|| invalid().help("names are not looked up while sending; use Attach for that"))
}

/// The address in the form that a socket of this family takes.
pub fn for_family(address: SocketAddr, family: AddressFamily) -> Result<SocketAddr> {
    match address {
        SocketAddr::V4(v4) if family == AddressFamily::INET6 => {
            Ok(SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()))
        }
        SocketAddr::V6(_) if family == AddressFamily::INET => Err(Error::invalid(format!(
            "cannot send to {} from an IPv4 socket; create one with family=ipv6",
            show(&address)
        ))),
        same => Ok(same),
    }
}

/// What getsockname(2), getpeername(2) and accept(2) return for these families.
pub fn from_any(address: SocketAddrAny) -> Result<SocketAddr> {
    SocketAddr::try_from(address).attempted(|| "read an address that is neither IPv4 nor IPv6")
}

/// The key `range`: whose datagrams and connections are taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Range>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    network: IpAddr,
    length: u32,
}

impl Ranges {
    pub fn of(parameters: &Parameters) -> Result<Self> {
        parameters.text("range").map_or_else(|| Ok(Self::default()), Self::parse)
    }

    fn parse(text: &str) -> Result<Self> {
        text.split('+').map(Range::parse).collect::<Result<_>>().map(Self)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// No range given admits everybody.
    pub fn admit(&self, peer: &SocketAddr) -> bool {
        self.0.is_empty() || self.0.iter().any(|range| range.contains(peer.ip()))
    }
}

impl std::fmt::Display for Ranges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, range) in self.0.iter().enumerate() {
            write!(f, "{}{}/{}", if n > 0 { "+" } else { "" }, range.network, range.length)?;
        }
        Ok(())
    }
}

impl Range {
    fn parse(text: &str) -> Result<Self> {
        let invalid = |why: &str| {
            Error::invalid(format!(
                "the key \"range\" must be networks such as 192.0.2.0/24 or fe80::/10, joined with '+': \
                 {text:?} {why}"
            ))
        };
        let (network, length) = match text.split_once('/') {
            Some((network, length)) => (network, Some(length)),
            None => (text, None),
        };
        let network: IpAddr = network.parse().map_err(|_| invalid("has no valid address"))?;
        let width = width(network);
        let length = match length {
            None => width,
            Some(length) => length
                .parse()
                .ok()
                .filter(|length| *length <= width)
                .ok_or_else(|| invalid(&format!("has no prefix length from 0 to {width}")))?,
        };
        let range = Self { network, length };
        let beyond = bits(network) & !range.mask();
        if beyond != 0 && length < width {
            return Err(invalid("has bits set beyond its prefix"));
        }
        Ok(range)
    }

    /// Ones where the prefix is, counted within the width of the family.
    fn mask(&self) -> u128 {
        let host = width(self.network) - self.length;
        u128::MAX.checked_shl(host).unwrap_or(0)
    }

    fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip.is_ipv4() == self.network.is_ipv4() && (bits(ip) ^ bits(self.network)) & self.mask() == 0
    }
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn width(ip: IpAddr) -> u32 {
    if ip.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn literals_and_names_are_told_apart() {
        assert_eq!(literal("127.0.0.1", 1).unwrap(), Some(at("127.0.0.1:1")));
        assert_eq!(literal("[::1]", 2).unwrap(), Some(at("[::1]:2")));
        assert_eq!(literal("fe80::1%7", 3).unwrap(), Some(at("[fe80::1%7]:3")));
        assert_eq!(literal("localhost", 1).unwrap(), None);
        assert_eq!(literal("x%eth0", 1).unwrap_err().kind, Kind::InvalidArgument);
        assert_eq!(literal("fe80::1%no-such-if", 1).unwrap_err().kind, Kind::NotFound);
        assert_eq!(resolve("a b", 1, Family::Any).unwrap_err().kind, Kind::InvalidArgument);
        assert_eq!(resolve("", 1, Family::Any).unwrap_err().kind, Kind::InvalidArgument);
        let error = resolve("::1", 1, Family::Ipv4).unwrap_err();
        assert!(error.text.contains("only IPv6"), "{error}");
    }

    #[test]
    fn destinations_are_read_in_both_forms() {
        for text in ["udp:host=::1,port=5", "udp:host=%3a%3a1,port=5", "[::1]:5"] {
            assert_eq!(destination(text).unwrap(), at("[::1]:5"), "{text}");
        }
        assert_eq!(destination("10.0.0.1:5").unwrap(), at("10.0.0.1:5"));
        let written = write("udp", &at("[::1]:5")).to_string();
        assert_eq!(destination(&written).unwrap(), at("[::1]:5"));
        for text in ["", "10.0.0.1", "::1:5", "10.0.0.1:0", "10.0.0.1:65536", "localhost:5", "udp:host=::1"] {
            assert_eq!(destination(text).unwrap_err().kind, Kind::InvalidArgument, "{text}");
        }
    }

    #[test]
    fn ranges_admit_their_own() {
        let ranges = Ranges::parse("10.0.0.0/8+fe80::/10+::1").unwrap();
        for inside in ["10.255.0.1:1", "[fe81::1]:1", "[::1]:1", "[::ffff:10.1.1.1]:1"] {
            assert!(ranges.admit(&at(inside)), "{inside}");
        }
        for outside in ["11.0.0.1:1", "[fec0::1]:1", "[::2]:1", "[::10.0.0.1]:1"] {
            assert!(!ranges.admit(&at(outside)), "{outside}");
        }
        assert!(Ranges::parse("0.0.0.0/0").unwrap().admit(&at("8.8.8.8:1")));
        assert!(!Ranges::parse("0.0.0.0/0").unwrap().admit(&at("[::1]:1")));
        assert!(Ranges::parse("::/0").unwrap().admit(&at("[::1]:1")));
        assert!(Ranges::default().admit(&at("8.8.8.8:1")));
        assert_eq!(ranges.to_string(), "10.0.0.0/8+fe80::/10+::1/128");
        for bad in ["", "10.0.0.1/8", "10.0.0.0/33", "x/8", "10.0.0.0/", "10.0.0.0/8+"] {
            let error = Ranges::parse(bad).unwrap_err();
            assert!(error.text.contains("range"), "{error}");
        }
    }

    #[test]
    fn mapped_addresses_are_shown_as_ipv4() {
        assert_eq!(canonical(at("[::ffff:127.0.0.1]:9")), at("127.0.0.1:9"));
        assert_eq!(canonical(at("[::1]:9")), at("[::1]:9"));
        assert_eq!(for_family(at("1.2.3.4:9"), AddressFamily::INET6).unwrap(), at("[::ffff:1.2.3.4]:9"));
        assert!(for_family(at("[::1]:9"), AddressFamily::INET).is_err());
    }
}
