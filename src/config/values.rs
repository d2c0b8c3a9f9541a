//! The values of a group file: names, addresses, keys, interfaces.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{
    InterfaceName, MAX_NAME_BYTES,
    problem::quote,
    reader::{Reader, Value},
};
use crate::session::keys::PublicKey;

/// The UDP port that suggestions show.
const EXAMPLE_PORT: u16 = 51840;

/// What an address is for, which says which ones make sense.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Others send to it.
    Reach,
    /// A socket is bound to it.
    Bind,
}

impl Reader<'_> {
    /// The name of a group, site, appliance or network. It is used in file
    /// names, TOML keys and messages, so it takes only what is safe in all.
    pub(super) fn name<'t>(&mut self, value: &'t Value<'t>, what: &str) -> Option<&'t str> {
        let name = self.text(value)?;
        if is_name(name) {
            return Some(name);
        }
        let message = format!("{what} {} is not valid", quote(name));
        let suggestion = format!(
            "use up to {MAX_NAME_BYTES} letters, digits, `-`, `_` and `.`, a letter or digit first"
        );
        self.report(value.span(), message, suggestion);
        None
    }

    pub(super) fn public_key<'t>(&mut self, value: &'t Value<'t>) -> Option<PublicKey> {
        let text = self.text(value)?;
        match text.parse() {
            Ok(key) => Some(key),
            Err(error) => {
                self.report(
                    value.span(),
                    format!("public key {} is not valid: {error}", quote(text)),
                    "paste what `landbridge pubkey < KEYFILE` prints",
                );
                None
            }
        }
    }

    pub(super) fn interface<'t>(&mut self, value: &'t Value<'t>) -> Option<InterfaceName> {
        let text = self.text(value)?;
        match text.parse() {
            Ok(name) => Some(name),
            Err(error) => {
                self.report(
                    value.span(),
                    format!("{} can't name an interface: {error}", quote(text)),
                    "write a name as `ip link` shows it",
                );
                None
            }
        }
    }

    pub(super) fn address<'t>(
        &mut self,
        value: &'t Value<'t>,
        purpose: Purpose,
    ) -> Option<SocketAddr> {
        let text = self.text(value)?;
        let complaint = match text.parse::<SocketAddr>() {
            Ok(address) => match objection(address, purpose) {
                None => return Some(address),
                Some(complaint) => complaint,
            },
            Err(_) => malformed(text),
        };
        let (why, suggestion) = complaint;
        self.report(value.span(), format!("address {} {why}", quote(text)), suggestion);
        None
    }
}

/// Whether `name` may name a group, site, appliance or network: 1 to 63 ASCII
/// letters, digits, `-`, `_` and `.`, a letter or digit first.
pub fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    name.len() <= MAX_NAME_BYTES
        && name.bytes().all(good)
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
}

/// Why a well-formed address can't serve, and what to do.
fn objection(address: SocketAddr, purpose: Purpose) -> Option<(&'static str, String)> {
    let ip = address.ip();
    let port = address.port();
    if port == 0 {
        return Some(("has port 0", format!("write a port, such as {EXAMPLE_PORT}")));
    }
    if ip.is_multicast() || matches!(ip, IpAddr::V4(v4) if v4.is_broadcast()) {
        return Some(("is not one host's", "write a unicast address".into()));
    }
    if let IpAddr::V6(v6) = ip
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Some(("is an IPv4 address in IPv6 form", format!("write \"{v4}:{port}\"")));
    }
    if purpose == Purpose::Reach {
        if ip.is_unspecified() {
            return Some((
                "can't be sent to",
                "write the address where others reach the appliance; `listen` takes this one"
                    .into(),
            ));
        }
        if matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            return Some(("is link-local", "write an address that is routed between sites".into()));
        }
    }
    None
}

/// Why a text is no address with a port, and what was probably meant.
fn malformed(text: &str) -> (&'static str, String) {
    if let Ok(v6) = text.parse::<Ipv6Addr>() {
        return (
            "has no port",
            format!("write \"[{v6}]:{EXAMPLE_PORT}\" (or [ ] around the right part)"),
        );
    }
    if text.parse::<IpAddr>().is_ok() || is_bracketed_v6(text) {
        return ("has no port", format!("write \"{text}:{EXAMPLE_PORT}\""));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return ("is not valid", format!("write ADDRESS:PORT, as \"192.0.2.11:{EXAMPLE_PORT}\""));
    };
    if host.parse::<IpAddr>().is_ok() || is_bracketed_v6(host) {
        return match host.parse::<Ipv6Addr>() {
            Ok(v6) => ("needs [ ] around IPv6", format!("write \"[{v6}]:{port}\"")),
            Err(_) => ("has a bad port", "write a port from 1 to 65535".into()),
        };
    }
    if host.contains(|char: char| char.is_ascii_alphabetic()) && !host.contains(':') {
        return (
            "is a host name",
            "write the IP address: names are not looked up, so that no name server can stop the \
             tunnel"
                .into(),
        );
    }
    (
        "is not valid",
        format!("write \"192.0.2.11:{EXAMPLE_PORT}\" or \"[2001:db8::11]:{EXAMPLE_PORT}\""),
    )
}

fn is_bracketed_v6(text: &str) -> bool {
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    inner.is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok())
}
