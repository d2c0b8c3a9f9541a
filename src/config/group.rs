//! From TOML tables to a [`Group`].

use std::{
    collections::BTreeMap,
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

use toml::de::DeTable;

use super::{
    Appliance, DEFAULT_AGEING, DEFAULT_MAX_MACS, DEFAULT_REKEY_AFTER, Group, MAX_FILE_BYTES,
    MAX_NETWORKS, MAX_SITES, MAX_UNDERLAY_ADDRESSES, Network, Problems, Site,
    attachment::read_attachment,
    digest,
    problem::{nearest, quote},
    reader::{Field, Reader, Table, Value},
    values::Purpose,
};
use crate::topology::{NetworkId, SiteIndex};

/// Most appliances of a site in this version; high availability lifts it.
const MAX_APPLIANCES_PER_SITE: usize = 1;

pub(super) const fn field(name: &'static str, example: &'static str) -> Field {
    Field { name, example }
}

const NAME: Field = field("name", "\"…\"");
const GROUP: Field = field("group", "");
const SITE: Field = field("site", "");
const NETWORK: Field = field("network", "");
const PRESHARED_KEY_FILE: Field = field("preshared_key_file", "\"group.psk\"");
const REKEY_AFTER_S: Field = field("rekey_after_s", "120");
const LANES: Field = field("lanes", "2");
const SPIN_US: Field = field("spin_us", "50");
const APPLIANCE: Field = field("appliance", "");
const PUBLIC_KEY: Field = field("public_key", "\"<what landbridge pubkey prints>\"");
const UNDERLAY: Field = field("underlay", "[\"192.0.2.11:51840\"]");
const LISTEN: Field = field("listen", "\"0.0.0.0:51840\"");
const PEER_LINK: Field = field("peer_link", "\"10.0.0.1:51841\"");
const ID: Field = field("id", "100");
const MAX_MACS: Field = field("max_macs", "16384");
const AGEING_S: Field = field("ageing_s", "300");
const ATTACH: Field = field("attach", "");

/// Parses and validates a group file. `file_name` is only shown in messages.
///
/// # Errors
/// Every mistake in the file, or the first
/// [`MAX_PROBLEMS`](super::problem::MAX_PROBLEMS) of them.
pub fn parse(text: &str, file_name: &str) -> Result<Group, Problems> {
    let mut reader = Reader::new(text.get(..MAX_FILE_BYTES).map_or(text, |_| ""));
    let group = if text.len() > MAX_FILE_BYTES {
        let message = format!("the file is longer than {MAX_FILE_BYTES} bytes");
        reader.report(0..0, message, "is this the group file?");
        None
    } else {
        let (root, errors) = DeTable::parse_recoverable(text);
        reader.syntax_errors(&errors);
        let root = Table { entries: root.get_ref(), span: 0..0, place: "the group file" };
        read_group(&mut reader, &root)
    };
    match group {
        Some(group) if reader.is_clean() => Ok(group),
        _ => {
            let (problems, omitted) = reader.into_problems();
            assert!(!problems.is_empty(), "what couldn't be read was reported");
            Err(Problems::new(file_name, problems, omitted))
        }
    }
}

/// Names of the sites read so far, for `attach.SITE`.
type SiteNames = BTreeMap<String, SiteIndex>;

fn read_group(reader: &mut Reader<'_>, root: &Table<'_>) -> Option<Group> {
    reader.known_fields(root, &[GROUP, SITE, NETWORK]);
    let settings = root.entries.get(GROUP.name);
    let settings = match settings {
        Some(value) => reader.table(value, "[group]", "write [group] above its fields"),
        None => {
            reader.report_absence(0..0, "missing table [group]", "begin with [group] and a name");
            None
        }
    };
    let settings = settings.and_then(|table| read_settings(reader, &table));

    let mut names = SiteNames::new();
    let tables = reader.tables(root, SITE.name, "[[site]]");
    check_count(reader, root, &tables, "[[site]]", 2, MAX_SITES);
    let site_spans: Vec<_> = tables.iter().map(|table| table.span.clone()).collect();
    let sites: Vec<_> = (0..)
        .zip(&tables[..tables.len().min(MAX_SITES)])
        .map(|(index, table)| read_site(reader, table, SiteIndex(index), &mut names))
        .collect();

    let tables = reader.tables(root, NETWORK.name, "[[network]]");
    check_count(reader, root, &tables, "[[network]]", 1, MAX_NETWORKS);
    let mut attached = vec![false; sites.len()];
    let networks: Vec<_> = tables[..tables.len().min(MAX_NETWORKS)]
        .iter()
        .map(|table| read_network(reader, table, &names, &mut attached))
        .collect();
    for (name, index) in &names {
        let index = usize::from(index.0);
        if !attached[index] {
            reader.report_absence(
                site_spans[index].clone(),
                format!("site {} has no attachment in any network", quote(name)),
                format!("add `attach.{name} = {{ bridge = \"br0\" }}` to a [[network]]"),
            );
        }
    }

    let mut group = Group {
        sites: sites.into_iter().collect::<Option<_>>()?,
        networks: networks.into_iter().collect::<Option<_>>()?,
        ..settings?
    };
    group.digest = digest::digest(&group);
    Some(group)
}

/// The `[group]` table: a group that has no sites and networks yet.
fn read_settings(reader: &mut Reader<'_>, table: &Table<'_>) -> Option<Group> {
    reader.known_fields(table, &[NAME, PRESHARED_KEY_FILE, REKEY_AFTER_S, LANES, SPIN_US]);
    let name = required_name(reader, table, "group name");
    let preshared_key_file = table.entries.get(PRESHARED_KEY_FILE.name).and_then(|value| {
        let path = reader.text(value)?;
        if path.is_empty() || path.contains('\0') {
            reader.report(value.span(), "the path is not valid", "leave the field out for none");
        }
        Some(path.into())
    });
    let rekey_after_s = number(reader, table, REKEY_AFTER_S, 2, 120);
    let lanes = number(reader, table, LANES, 1, 16);
    let spin_us = number(reader, table, SPIN_US, 0, 1000);
    Some(Group {
        name: name?.to_owned(),
        preshared_key_file,
        rekey_after: rekey_after_s.map_or(DEFAULT_REKEY_AFTER, seconds),
        lanes: lanes.and_then(|lanes| u8::try_from(lanes).ok()),
        spin: spin_us.map(|micros| Duration::from_micros(micros.into())),
        sites: Vec::new(),
        networks: Vec::new(),
        digest: [0; 32],
    })
}

fn read_site(
    reader: &mut Reader<'_>,
    table: &Table<'_>,
    index: SiteIndex,
    names: &mut SiteNames,
) -> Option<Site> {
    reader.known_fields(table, &[NAME, APPLIANCE]);
    let name = required_name(reader, table, "site name");
    if let Some(name) = name {
        reader.unique("site name", name, table.entries[NAME.name].span());
        names.entry(name.to_owned()).or_insert(index);
    }
    let tables = reader.tables(table, APPLIANCE.name, "[[site.appliance]]");
    if tables.is_empty() && !table.entries.contains_key(APPLIANCE.name) {
        reader.report_absence(
            table.span.clone(),
            format!("site {} has no appliance", quote(name.unwrap_or("?"))),
            "add [[site.appliance]] below it",
        );
    }
    if let Some(excess) = tables.get(MAX_APPLIANCES_PER_SITE) {
        let (what, suggestion) = match tables.len() {
            2 => (
                "two appliances per site (high availability) is not in this version",
                "keep one [[site.appliance]] per site",
            ),
            _ => (
                "more than 2 appliances per site is not supported yet",
                "keep one [[site.appliance]] per site; two (high availability) is not in this \
                 version",
            ),
        };
        reader.report(excess.span.clone(), what, suggestion);
    }
    let partnered = tables.len() == 2;
    let appliances: Vec<_> =
        tables.iter().map(|table| read_appliance(reader, table, partnered)).collect();
    Some(Site {
        name: name?.to_owned(),
        appliances: appliances.into_iter().collect::<Option<_>>()?,
    })
}

fn read_appliance(
    reader: &mut Reader<'_>,
    table: &Table<'_>,
    partnered: bool,
) -> Option<Appliance> {
    reader.known_fields(table, &[NAME, PUBLIC_KEY, UNDERLAY, LISTEN, PEER_LINK]);
    let name = required_name(reader, table, "appliance name");
    if let Some(name) = name {
        reader.unique("appliance name", name, table.entries[NAME.name].span());
    }
    let public_key = reader.required(table, PUBLIC_KEY).and_then(|value| {
        let key = reader.public_key(value)?;
        reader.unique("public key", &key.to_string(), value.span());
        Some(key)
    });
    let underlay = reader.required(table, UNDERLAY).and_then(|value| read_underlay(reader, value));
    let listen = table.entries.get(LISTEN.name).map(|value| reader.address(value, Purpose::Bind));
    let peer_link = table.entries.get(PEER_LINK.name).and_then(|value| {
        if !partnered {
            reader.report(
                value.span(),
                "`peer_link` joins the two appliances of a site, and this site has no two",
                "leave it out",
            );
        }
        let address = reader.address(value, Purpose::Reach)?;
        reader.unique("address", &address.to_string(), value.span());
        Some(address)
    });
    let underlay = underlay?;
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, underlay.first()?.port()));
    Some(Appliance {
        name: name?.to_owned(),
        public_key: public_key?,
        listen: listen.unwrap_or(Some(any))?,
        underlay,
        peer_link,
    })
}

fn read_underlay(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Vec<SocketAddr>> {
    let items = reader.list(value, "`underlay`", MAX_UNDERLAY_ADDRESSES)?;
    let mut addresses = Vec::new();
    for item in items {
        let Some(address) = reader.address(item, Purpose::Reach) else { continue };
        reader.unique("address", &address.to_string(), item.span());
        if let Some(first) = addresses.first().map(SocketAddr::port)
            && first != address.port()
        {
            reader.report(
                item.span(),
                format!("port {} differs from {first} before", address.port()),
                "an appliance has one socket: give all its addresses one port",
            );
        }
        addresses.push(address);
    }
    (addresses.len() == items.len()).then_some(addresses)
}

fn read_network(
    reader: &mut Reader<'_>,
    table: &Table<'_>,
    sites: &SiteNames,
    attached: &mut [bool],
) -> Option<Network> {
    reader.known_fields(table, &[ID, NAME, MAX_MACS, AGEING_S, ATTACH]);
    let id = reader.required(table, ID).and_then(|value| {
        let id = reader.number(value, "network id", 1..=(1 << 24) - 1)?;
        reader.unique("network id", &id.to_string(), value.span()).then_some(NetworkId(id))
    });
    let name = required_name(reader, table, "network name");
    if let Some(name) = name {
        reader.unique("network name", name, table.entries[NAME.name].span());
    }
    let max_macs = number(reader, table, MAX_MACS, 16, 1 << 20);
    let ageing_s = number(reader, table, AGEING_S, 10, 86_400);

    let mut attachments = vec![None; attached.len()];
    let named = table.entries.get(ATTACH.name).and_then(|value| {
        reader.table(value, "attach", "write `attach.SITE = { bridge = \"br0\" }`")
    });
    // Even a faulty attachment shows that its site was meant to be attached.
    let mut meant = 0;
    for (site, value) in named.iter().flat_map(|table| table.entries.iter()) {
        meant += 1;
        let index = sites.get(&**site.get_ref()).copied();
        match index {
            Some(index) => attached[usize::from(index.0)] = true,
            // A site whose name is wrong or taken may be the one that is meant.
            None if sites.len() < attached.len() => {}
            None => report_unknown_site(reader, site.span(), site.get_ref(), sites),
        }
        let attachment = read_attachment(reader, value, site.get_ref(), id);
        if let Some(index) = index {
            attachments[usize::from(index.0)] = attachment;
        }
    }
    if meant < 2 {
        let count = if meant == 0 { "no site" } else { "one site only" };
        reader.report_absence(
            table.span.clone(),
            format!("network {} is attached at {count}", quote(name.unwrap_or("?"))),
            "add `attach.SITE = { … }` for at least two sites",
        );
    }
    Some(Network {
        id: id?,
        name: name?.to_owned(),
        max_macs: max_macs.unwrap_or(DEFAULT_MAX_MACS),
        ageing: ageing_s.map_or(DEFAULT_AGEING, seconds),
        attachments,
    })
}

fn report_unknown_site(
    reader: &mut Reader<'_>,
    span: std::ops::Range<usize>,
    name: &str,
    sites: &SiteNames,
) {
    let suggestion = match nearest(name, sites.keys().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let names: Vec<_> = sites.keys().take(8).map(String::as_str).collect();
            format!("the sites are: {}", names.join(", "))
        }
    };
    reader.report_absence(span, format!("there is no site {}", quote(name)), suggestion);
}

fn check_count(
    reader: &mut Reader<'_>,
    root: &Table<'_>,
    tables: &[Table<'_>],
    place: &str,
    min: usize,
    max: usize,
) {
    let span = tables.last().map_or(root.span.clone(), |table| table.span.clone());
    let count = tables.len();
    if count < min {
        let message = format!("the group has {count} {place}, it needs at least {min}");
        reader.report_absence(span, message, format!("add {place}"));
    } else if count > max {
        let message = format!("the group has {count} {place}");
        reader.report(span, message, format!("at most {max} are supported"));
    }
}

fn required_name<'t>(reader: &mut Reader<'_>, table: &Table<'t>, what: &str) -> Option<&'t str> {
    let value = reader.required(table, NAME)?;
    reader.name(value, what)
}

pub(super) fn number(
    reader: &mut Reader<'_>,
    table: &Table<'_>,
    field: Field,
    min: u32,
    max: u32,
) -> Option<u32> {
    let value = table.entries.get(field.name)?;
    reader.number(value, &format!("`{}`", field.name), min..=max)
}

fn seconds(count: u32) -> Duration {
    Duration::from_secs(count.into())
}
