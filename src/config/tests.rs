use std::{path::Path, time::Duration};

use proptest::prelude::*;

use super::*;

const EXAMPLE: &str = include_str!("../../examples/group.toml");

/// Line 1 is `[group]`; the tests below count on the lines.
const GOOD: &str = r#"[group]
name = "g"
[[site]]
name = "east"
[[site.appliance]]
name = "east-1"
public_key = "GLYlKqB9FaE6MMNlX4ZeG4D5jPRlDJqfIJU2mpvOBXg="
underlay = ["192.0.2.11:51840"]
[[site]]
name = "west"
[[site.appliance]]
name = "west-1"
public_key = "nLxAGzJnbVYF5UMGdcR1ZvNBSPUhqcPi4hQcVLLZb0I="
underlay = ["[2001:db8::7]:51841"]
[[network]]
id = 100
name = "app"
attach.east = { bridge = "br-app" }
attach.west = { nic = "eth1", vlan = 100 }
[[network]]
id = 200
name = "db"
attach.east = { bridge = "br-db" }
attach.west = { nic = "eth1", vlan = 200 }
"#;

fn problems(text: &str) -> Vec<(usize, String, String)> {
    let problems = parse(text, "group.toml").expect_err(text);
    problems.iter().map(|p| (p.line, p.message.clone(), p.suggestion.clone())).collect()
}

/// `GOOD` with one text replaced must give exactly one problem.
fn check(old: &str, new: &str, line: usize, message: &str, suggestion: &str) {
    assert!(GOOD.contains(old), "{old}");
    let found = problems(&GOOD.replacen(old, new, 1));
    assert_eq!(found.len(), 1, "{new}: {found:#?}");
    let (at, said, suggested) = &found[0];
    assert!(said.contains(message), "{new}: {said:?} lacks {message:?}");
    assert!(suggested.contains(suggestion), "{new}: {suggested:?} lacks {suggestion:?}");
    assert_eq!(*at, line, "{new}: {said}");
}

fn name(text: &str) -> InterfaceName {
    text.parse().unwrap()
}

#[test]
fn reads_everything() {
    let group = parse(EXAMPLE, "group.toml").unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(group.name, "dc-east-west");
    assert_eq!(
        group.preshared_key_path(Path::new("/etc/landbridge/group.toml")).unwrap(),
        Path::new("/etc/landbridge/group.psk")
    );
    assert_eq!((group.rekey_after, group.lanes), (Duration::from_secs(120), Some(2)));
    assert_eq!(group.spin, Some(Duration::from_micros(30)));
    let [east, west] = &group.sites[..] else { panic!("two sites") };
    assert_eq!((east.name.as_str(), west.name.as_str()), ("east", "west"));
    assert_eq!(east.appliances[0].underlay.len(), 2);
    assert_eq!(east.appliances[0].listen, "[::]:51840".parse().unwrap());
    assert_eq!(west.appliances[0].listen, "0.0.0.0:51841".parse().unwrap());

    let app = &group.networks[0];
    assert_eq!((app.id, app.name.as_str(), app.max_macs), (NetworkId(100), "app", 16384));
    assert_eq!(app.ageing, Duration::from_secs(300));
    let bridge = AttachmentKind::Bridge { bridge: name("br-app"), tap: name("lb-app") };
    assert_eq!(app.attachment(SiteIndex(0)), Some(&Attachment { kind: bridge, offload: true }));
    let storage = &group.networks[1];
    let tap = AttachmentKind::Tap { tap: name("storage0"), mtu: 1500 };
    assert_eq!(storage.attachment(SiteIndex(0)).unwrap().kind, tap);
    let vlan = Some(VlanId::try_from(200).unwrap());
    let nic = AttachmentKind::Nic { nic: name("eth1"), vlan };
    assert_eq!(storage.attachment(SiteIndex(1)), Some(&Attachment { kind: nic, offload: false }));
    assert_eq!(storage.attachment(SiteIndex(2)), None);
}

#[test]
fn defaults() {
    let group = parse(GOOD, "group.toml").unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!((group.preshared_key_file.as_ref(), group.lanes, group.spin), (None, None, None));
    assert_eq!(group.rekey_after, DEFAULT_REKEY_AFTER);
    let app = &group.networks[0];
    assert_eq!((app.max_macs, app.ageing), (DEFAULT_MAX_MACS, DEFAULT_AGEING));
    let bridge = AttachmentKind::Bridge { bridge: name("br-app"), tap: name("lb-100") };
    assert_eq!(app.attachment(SiteIndex(0)).unwrap().kind, bridge);
}

#[test]
fn finds_myself() {
    let group = parse(GOOD, "group.toml").unwrap();
    let west = group.sites[1].appliances[0].public_key;
    assert_eq!(group.myself(&west), Ok((SiteIndex(1), 0)));

    let stranger = PublicKey::from_bytes([7; 32]).unwrap();
    let error = group.myself(&stranger).unwrap_err().to_string();
    for part in [stranger.to_string(), format!("west-1 = {west}"), "east-1".into()] {
        assert!(error.contains(&part), "{error}");
    }
}

#[test]
fn mistakes_in_group() {
    check("[group]", "[grp]\nname=\"x\"\n[group]", 1, "unknown field `grp`", "mean `group`");
    check("name = \"g\"", "nam = 1\nname = \"g\"", 2, "unknown field `nam` in [group]", "`name`");
    check("name = \"g\"", "", 1, "missing field `name` in [group]", "add `name");
    check("name = \"g\"", "name = 7", 2, "expected a string, found a whole number", "\"7\"");
    check("name = \"g\"", "name = \"a b\"", 2, "group name `a b` is not valid", "letters");
    check("name = \"g\"", "name = \"\"", 2, "group name `` is not valid", "letters");
    let group = |line: &str| format!("name = \"g\"\n{line}");
    for (bad, message, suggestion) in [
        ("rekey_after_s = 1", "`rekey_after_s` `1` is out of range", "from 2 to 120"),
        ("rekey_after_s = 121", "`121` is out of range", "from 2 to 120"),
        ("rekey_after_s = \"60\"", "expected a whole number, found a string", "quotes"),
        ("lanes = 0", "`lanes` `0` is out of range", "from 1 to 16"),
        ("lanes = -1", "`-1` is out of range", "from 1 to 16"),
        ("lanes = 99999999999999999999999999", "is out of range", "1 to 16"),
        ("lanes = 1.5", "expected a whole number, found a fraction", "1 to 16"),
        ("spin_us = 1001", "`1001` is out of range", "from 0 to 1000"),
        ("preshared_key_file = true", "expected a string, found true or false", "\"true\""),
        ("preshared_key_file = \"\"", "the path is not valid", "leave"),
    ] {
        check("name = \"g\"", &group(bad), 3, message, suggestion);
    }
    check("[group]\nname = \"g\"", "group = 1", 1, "expected a table", "[group]");
}

#[test]
fn mistakes_in_sites() {
    check(
        "name = \"west\"",
        "name = \"east\"",
        10,
        "site name `east` is used twice: first used at line 4",
        "own",
    );
    check("name = \"west-1\"", "name = \"east-1\"", 12, "first used at line 6", "own");
    check(
        "nLxAGzJnbVYF5UMGdcR1ZvNBSPUhqcPi4hQcVLLZb0I=",
        "GLYlKqB9FaE6MMNlX4ZeG4D5jPRlDJqfIJU2mpvOBXg=",
        13,
        "public key `GLYlKqB9FaE6MMNlX4ZeG4D5jPRlDJqfIJU2mpvOBXg=` is used twice: first used at line 7",
        "own",
    );
    check("nLxAGz", "!LxAGz", 13, "is not valid: the key is not valid base64", "landbridge pubkey");
    check("nLxAGzJnbVYF5UMGdcR1ZvNBSPUhqcPi4hQcVLLZb0I=", "AAAA", 13, "3 bytes", "pubkey");
    check("public_key = \"nLx", "pubkey = \"nLx", 13, "unknown field `pubkey`", "`public_key`");
    check("public_key = \"nLx", "#", 11, "missing field `public_key`", "add");
}

#[test]
fn mistakes_in_addresses() {
    let underlay = "underlay = [\"192.0.2.11:51840\"]";
    for (bad, message, suggestion) in [
        ("underlay = []", "`underlay` is empty", "at least one"),
        ("underlay = \"192.0.2.11:51840\"", "expected a list, found a string", "[ and ]"),
        ("underlay = [1]", "expected a string", "\"1\""),
        ("underlay = [\"192.0.2.11\"]", "has no port", "\"192.0.2.11:51840\""),
        ("underlay = [\"192.0.2.11:0\"]", "has port 0", "51840"),
        ("underlay = [\"192.0.2.11:70000\"]", "has a bad port", "65535"),
        ("underlay = [\"2001:db8::1\"]", "has no port", "\"[2001:db8::1]:51840\""),
        ("underlay = [\"[2001:db8::1]\"]", "has no port", "\"[2001:db8::1]:51840\""),
        (
            "underlay = [\"2001:db8:1:2:3:4:5:6:51840\"]",
            "needs [ ]",
            "\"[2001:db8:1:2:3:4:5:6]:51840\"",
        ),
        ("underlay = [\"vpn.example.com:51840\"]", "is a host name", "IP address"),
        ("underlay = [\"1.2.3:1:2\"]", "is not valid", "192.0.2.11:51840"),
        ("underlay = [\"0.0.0.0:51840\"]", "can't be sent to", "listen"),
        ("underlay = [\"224.0.0.5:51840\"]", "is not one host's", "unicast"),
        ("underlay = [\"[fe80::1]:51840\"]", "is link-local", "routed"),
        ("underlay = [\"[::ffff:192.0.2.1]:5\"]", "in IPv6 form", "\"192.0.2.1:5\""),
        ("underlay = [\"192.0.2.11:1\", \"192.0.2.12:2\"]", "port 2 differs from 1", "one port"),
        ("underlay = [\"192.0.2.11:1\", \"192.0.2.11:1\"]", "first used at line 8", "own"),
        ("underlay = [\"192.0.2.11:1\"]\nlisten = \"eth0\"", "is not valid", "ADDRESS:PORT"),
        ("underlay = [\"192.0.2.11:1\"]\npeer_link = \"10.0.0.1:1\"", "has no two", "leave"),
    ] {
        let line = if bad.contains('\n') { 9 } else { 8 };
        check(underlay, bad, line, message, suggestion);
    }
    check(
        "[2001:db8::7]:51841",
        "192.0.2.11:51840",
        14,
        "address `192.0.2.11:51840` is used twice: first used at line 8",
        "own",
    );
}

#[test]
fn mistakes_in_networks() {
    for (old, new, line, message, suggestion) in [
        (
            "id = 200",
            "id = 100",
            21,
            "network id `100` is used twice: first used at line 16",
            "own",
        ),
        ("id = 200", "id = 0", 21, "network id `0` is out of range", "1 to 16777215"),
        ("id = 200", "id = 16777216", 21, "is out of range", "1 to 16777215"),
        ("id = 200", "", 20, "missing field `id` in [[network]]", "add `id = 100`"),
        ("name = \"db\"", "name = \"app\"", 22, "first used at line 17", "own"),
        ("name = \"db\"", "name = \"db\"\nmax_macs = 1", 23, "out of range", "from 16 to 1048576"),
        ("name = \"db\"", "name = \"db\"\nageing_s = 9", 23, "out of range", "from 10 to 86400"),
        ("name = \"db\"", "name = \"db\"\nageing = 9", 23, "unknown field `ageing`", "`ageing_s`"),
        (
            "attach.west = { nic = \"eth1\", vlan = 200 }",
            "",
            20,
            "`db` is attached at one site only",
            "attach.SITE",
        ),
        (
            "attach.west = { nic = \"eth1\", vlan = 200 }",
            "attach.wst = { nic = \"eth1\", vlan = 200 }",
            24,
            "there is no site `wst`",
            "`west`",
        ),
        (
            "attach.east = { bridge = \"br-app\" }",
            "attach.east = \"br-app\"",
            18,
            "expected a table",
            "{ bridge",
        ),
    ] {
        check(old, new, line, message, suggestion);
    }
    let empty =
        problems(&GOOD.replace("[[network]]\nid = 200", "[[network]]\n[[network]]\nid = 200"));
    assert_eq!(empty.len(), 3, "id, name, attachments: {empty:?}");
    assert!(empty.iter().all(|(line, ..)| *line == 20), "{empty:?}");
}

#[test]
fn mistakes_in_attachments() {
    let bridge = "{ bridge = \"br-db\" }";
    for (bad, message, suggestion) in [
        (
            "{ bridge = \"br-app\" }",
            "bridge `br-app` is used twice at site `east`: first used at line 18",
            "own",
        ),
        (
            "{ bridge = \"b\", tap = \"lb-100\" }",
            "TAP `lb-100` is used twice at site `east`: first used at line 18",
            "`tap`",
        ),
        ("{ tap = \"br-app\" }", "TAP `br-app` is used twice", "own"),
        ("{ nic = \"br-app\" }", "NIC `br-app` is used twice", "own"),
        ("{ bridge = \"a-name-too-long-\" }", "it has 16 characters", "ip link"),
        ("{ bridge = \"a/b\" }", "it contains '/'", "ip link"),
        ("{ bridge = \"a b\" }", "it contains ' '", "ip link"),
        ("{ bridge = \"\" }", "it is empty", "ip link"),
        ("{ bridge = 1 }", "expected a string", "\"1\""),
        ("{ bridge = \"b\", vlan = 1 }", "`vlan` does not go with a bridge", "nic"),
        ("{ bridge = \"b\", mtu = 1500 }", "`mtu` does not go with a bridge", "bridge's MTU"),
        ("{ bridge = \"b\", nic = \"n\" }", "either a `nic` or a `bridge`", "leave"),
        ("{ tap = \"b\", nic = \"n\" }", "either a `nic` or a `tap`", "leave"),
        ("{ tap = \"b\", vlan = 1 }", "`vlan` does not go with a TAP", "nic"),
        ("{ tap = \"b\", mtu = 575 }", "`mtu` `575` is out of range", "576 to 9216"),
        ("{ tap = \"b\", mtu = 9217 }", "out of range", "576 to 9216"),
        ("{ nic = \"n\", mtu = 1500 }", "`mtu` does not go with a NIC", "ip link"),
        ("{ nic = \"n\", vlan = 0 }", "VLAN `0` is out of range", "1 to 4094"),
        ("{ nic = \"n\", vlan = 4095 }", "VLAN `4095` is out of range", "1 to 4094"),
        ("{ bridge = \"b\", offload = \"true\" }", "expected true or false", "quotes"),
        (
            "{ bridge = \"b\", offlod = true }",
            "unknown field `offlod` in an attachment",
            "`offload`",
        ),
        ("{ }", "names no `bridge`, `tap` or `nic`", "{ bridge"),
    ] {
        check(bridge, bad, 23, message, suggestion);
    }
    let west = "vlan = 200";
    check(
        west,
        "vlan = 100",
        24,
        "VLAN 100 of NIC `eth1` is used twice at site `west`: first used at line 19",
        "vlan",
    );
    check(", vlan = 200", "", 24, "both with a VLAN and without", "vlan");
    let untagged = GOOD.replace(", vlan = 100", "").replace(", vlan = 200", "");
    assert!(problems(&untagged)[0].1.contains("NIC `eth1` is used twice"));
}

#[test]
fn groups_of_the_wrong_size() {
    let pair = "[[site.appliance]]\nname = \"west-2\"\npublic_key = \"oLxAGzJnbVYF5UMGdcR1ZvNBSPUhqcPi4hQcVLLZb0I=\"\nunderlay = [\"192.0.2.99:1\"]\npeer_link = \"10.0.0.2:1\"\n[[network]]";
    let message = "two appliances per site (high availability) is not in this version";
    check("[[network]]", pair, 15, message, "one [[site.appliance]]");

    let alone = "[group]\nname = \"g\"\n[[site]]\nname = \"a\"\n";
    let found = problems(alone);
    let said: Vec<&str> = found.iter().map(|(_, message, _)| message.as_str()).collect();
    assert!(said.contains(&"the group has 1 [[site]], it needs at least 2"), "{said:?}");
    assert!(said.contains(&"site `a` has no appliance"), "{said:?}");
    assert!(said.contains(&"the group has 0 [[network]], it needs at least 1"), "{said:?}");
    assert!(said.contains(&"site `a` has no attachment in any network"), "{said:?}");

    let empty = problems("");
    assert_eq!(empty[0].1, "missing table [group]");
    let long = format!("# {}", "x".repeat(MAX_FILE_BYTES));
    assert_eq!(problems(&long).len(), 1);
}

#[test]
fn syntax_errors() {
    for (old, new, line) in [
        ("name = \"g\"", "name = \"g", 2),
        ("name = \"g\"", "name = g", 2),
        ("name = \"g\"", "name = \"g\"\nname = \"h\"", 3),
        ("[[network]]", "[[network]", 15),
        ("attach.east = { bridge = \"br-app\" }", "attach.east = { bridge = \"br-app\"", 19),
        ("id = 100", "id = ", 16),
    ] {
        let found = problems(&GOOD.replacen(old, new, 1));
        assert_eq!(
            found.iter().map(|(at, ..)| *at).collect::<Vec<_>>(),
            [line],
            "{new}: {found:?}"
        );
    }
}

#[test]
fn all_at_once_in_the_order_of_the_file() {
    let bad = GOOD
        .replace("underlay = [\"192", "underly = [\"192")
        .replace("name = \"west-1\"", "name = west-1")
        .replace("vlan = 100", "vlan = 5000")
        .replace("id = 200", "id = \"x\"");
    let shown = parse(&bad, "group.toml").unwrap_err().to_string();
    let heads: Vec<&str> = shown.lines().filter(|line| line.contains("error:")).collect();
    assert_eq!(heads.len(), 4, "{shown}");
    for (head, start) in heads.iter().zip([
        "group.toml:8:1: error: unknown field `underly` in [[site.appliance]]",
        "group.toml:12:8: error: ",
        "group.toml:19:38: error: VLAN `5000` is out of range",
        "group.toml:21:6: error: expected a whole number, found a string",
    ]) {
        assert!(head.starts_with(start), "{head}\n{start}");
    }
    assert!(shown.contains(
        "   8 | underly = [\"192.0.2.11:51840\"]\n     | ^^^^^^^ did you mean `underlay`?\n"
    ));
}

#[test]
fn the_number_of_problems_is_bounded() {
    let bad: String = (0..1000).map(|n| format!("unknown_{n} = 1\n")).collect();
    let error = parse(&bad, "f").unwrap_err();
    assert_eq!(error.iter().count(), problem::MAX_PROBLEMS);
    assert!(error.count() >= 1000);
    assert!(error.to_string().contains("more"));
}

#[test]
fn the_digest_is_of_the_meaning() {
    let digest = |text: &str| parse(text, "f").unwrap_or_else(|p| panic!("{p}")).digest;
    let good = digest(GOOD);
    let (head, networks) = GOOD.split_at(GOOD.find("[[network]]").unwrap());
    let (first, second) = networks.split_at(networks.rfind("[[network]]").unwrap());
    let (settings, sites) = head.split_at(head.find("[[site]]").unwrap());
    let (east, west) = sites.split_at(sites.rfind("[[site]]\n").unwrap());
    for same in [
        format!("# a comment\n{}", GOOD.replace(" = ", "=")),
        format!("{head}{second}{first}"),
        format!("{settings}{west}{east}{networks}"),
        GOOD.replacen("name = \"app\"", "name = \"app\"\nageing_s = 300\nmax_macs = 16_384", 1),
        GOOD.replacen("\"br-app\"", "\"br-app\", tap = \"lb-100\", offload = true", 1),
    ] {
        assert_eq!(digest(&same), good, "{same}");
    }
    for (old, new) in [
        ("\"g\"", "\"h\""),
        ("name = \"g\"", "name = \"g\"\nlanes = 1"),
        ("name = \"g\"", "name = \"g\"\nrekey_after_s = 119"),
        ("name = \"g\"", "name = \"g\"\npreshared_key_file = \"p\""),
        ("\"east-1\"", "\"east-2\""),
        ("nLx", "mLx"),
        ("192.0.2.11:51840", "192.0.2.11:51841"),
        ("[\"192.0.2.11:51840\"]", "[\"192.0.2.11:51840\"]\nlisten = \"0.0.0.0:51840\""),
        ("id = 100", "id = 101"),
        ("\"app\"", "\"api\""),
        ("\"br-app\"", "\"br-api\""),
        ("vlan = 100", "vlan = 101"),
        ("vlan = 100", "vlan = 100, offload = false"),
        ("{ bridge = \"br-app\" }", "{ tap = \"br-app\" }"),
    ] {
        assert_ne!(digest(&GOOD.replacen(old, new, 1)), good, "{new}");
    }
}

/// Pieces that a mutation may put anywhere.
const PIECES: [&str; 24] = [
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ",",
    ".",
    "\"",
    "'",
    "\"\"\"",
    "\n",
    "\r",
    "#",
    "\0",
    "é",
    "\u{202e}",
    "[[site]]\n",
    "[site]\n",
    "attach.east = 1\n",
    "[network.attach]\n",
    "99999999999999999999",
    "\u{feff}",
];

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "(?s).{0,200}") {
        if let Err(problems) = parse(&text, "f") {
            prop_assert!(problems.count() > 0);
            prop_assert!(!problems.to_string().is_empty());
        }
    }

    #[test]
    fn mutated_files_never_panic(
        example in any::<bool>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..40usize, 0..PIECES.len()), 1..6),
    ) {
        let mut text: Vec<char> = if example { EXAMPLE } else { GOOD }.chars().collect();
        for (at, cut, piece) in edits {
            let at = at.index(text.len() + 1);
            let end = (at + cut).min(text.len());
            text.splice(at..end, PIECES[piece].chars());
        }
        let text: String = text.into_iter().collect();
        match parse(&text, "f") {
            Ok(group) => prop_assert!(group.sites.len() >= 2 && !group.networks.is_empty()),
            Err(problems) => {
                prop_assert!(problems.count() > 0);
                prop_assert!(problems.iter().all(|problem| problem.line <= text.split('\n').count()));
                prop_assert!(!problems.to_string().is_empty());
            }
        }
    }
}
