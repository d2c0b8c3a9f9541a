//! The digest by which appliances tell whether their group files say the same.

use std::net::SocketAddr;

use blake2::{Blake2s256, Digest};

use super::{Appliance, Attachment, AttachmentKind, Group, Network};

/// BLAKE2s-256 (RFC 7693) over a canonical form of what the file means.
///
/// Comments, formatting, the order of the `[[site]]` and `[[network]]` tables
/// and whether a default is spelled out make no difference. The order of a
/// site's appliances (precedence) and of an appliance's underlay addresses
/// (preference) do.
///
/// The canonical form is a version label and then every field in the order of
/// the structs, sites by name, networks by id, attachments by site name. Texts and lists
/// are preceded by their length, numbers are 64-bit little endian, an option
/// is a count of 0 or 1, and addresses are text as Rust prints them.
pub(super) fn digest(group: &Group) -> [u8; 32] {
    let mut canonical = Canonical(Blake2s256::new());
    canonical.text("landbridge group file v1");
    canonical.text(&group.name);
    canonical.option(group.preshared_key_file.as_ref(), |canonical, path| {
        canonical.text(&path.to_string_lossy());
    });
    canonical.number(group.rekey_after.as_secs());
    canonical.option(group.lanes, |canonical, lanes| canonical.number(lanes.into()));
    canonical.option(group.spin, |canonical, spin| canonical.number(spin.as_micros() as u64));

    let mut sites: Vec<_> = group.sites.iter().collect();
    sites.sort_by(|a, b| a.name.cmp(&b.name));
    canonical.list(&sites, |canonical, site| {
        canonical.text(&site.name);
        canonical.list(&site.appliances, Canonical::appliance);
    });

    let mut networks: Vec<_> = group.networks.iter().collect();
    networks.sort_by_key(|network| network.id);
    canonical.list(&networks, |canonical, network| canonical.network(network, group));
    canonical.0.finalize().into()
}

struct Canonical(Blake2s256);

impl Canonical {
    fn appliance(&mut self, appliance: &Appliance) {
        self.text(&appliance.name);
        self.text(&appliance.public_key.to_string());
        self.list(&appliance.underlay, Self::address);
        self.address(&appliance.listen);
        self.option(appliance.peer_link, |canonical, address| canonical.address(&address));
    }

    fn network(&mut self, network: &Network, group: &Group) {
        self.number(network.id.0.into());
        self.text(&network.name);
        self.number(network.max_macs.into());
        self.number(network.ageing.as_secs());
        let sites = group.sites.iter().zip(&network.attachments);
        let mut attachments: Vec<_> =
            sites.filter_map(|(site, at)| Some((site.name.as_str(), at.as_ref()?))).collect();
        attachments.sort_by_key(|(site, _)| *site);
        self.list(&attachments, |canonical, (site, attachment)| {
            canonical.text(site);
            canonical.attachment(attachment);
        });
    }

    fn attachment(&mut self, attachment: &Attachment) {
        match &attachment.kind {
            AttachmentKind::Bridge { bridge, tap } => {
                self.text("bridge");
                self.text(bridge.as_str());
                self.text(tap.as_str());
            }
            AttachmentKind::Tap { tap, mtu } => {
                self.text("tap");
                self.text(tap.as_str());
                self.number((*mtu).into());
            }
            AttachmentKind::Nic { nic, vlan } => {
                self.text("nic");
                self.text(nic.as_str());
                self.option(*vlan, |canonical, vlan| canonical.number(vlan.get().into()));
            }
        }
        self.number(attachment.offload.into());
    }

    fn address(&mut self, address: &SocketAddr) {
        self.text(&address.to_string());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text);
    }

    fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.number(value.is_some().into());
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.number(items.len() as u64);
        for item in items {
            write(self, item);
        }
    }
}
