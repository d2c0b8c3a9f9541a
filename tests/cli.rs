//! The binary's own sub-commands, as a user calls them.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
};

fn landbridge(directory: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_landbridge"))
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that doesn't read may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("killed: {output:?}"))
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

const INIT: [&str; 11] = [
    "init",
    "--site",
    "east=192.0.2.11",
    "--site",
    "west=[2001:db8::7]:4000",
    "--network",
    "7:app",
    "--attach",
    "east:app=bridge:br0",
    "--attach",
    "west:7=nic:eth1:100",
];

#[test]
fn keys_are_as_wg_has_them() {
    let directory = tempfile::tempdir().unwrap();
    let private = landbridge(directory.path(), &["genkey"], "");
    assert_eq!((code(&private), out(&private).len(), err(&private).as_str()), (0, 45, ""));
    assert_ne!(out(&private), out(&landbridge(directory.path(), &["genkey"], "")));
    assert_eq!(out(&landbridge(directory.path(), &["genpsk"], "")).len(), 45);

    // The key pair of RFC 7748, section 6.1 (Alice).
    let alice = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=\n";
    let public = landbridge(directory.path(), &["pubkey"], alice);
    assert_eq!(out(&public), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\n");

    for bad in ["", "AAAA\n", "not a key\n", &"A".repeat(100_000)] {
        let public = landbridge(directory.path(), &["pubkey"], bad);
        assert_eq!((code(&public), out(&public).as_str()), (1, ""));
        assert!(err(&public).starts_with("landbridge: "), "{}", err(&public));
        assert!(err(&public).contains("\n  try: "), "{}", err(&public));
    }
}

#[test]
fn a_secret_in_a_file_for_all_is_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    for (mode, warned) in [(0o644, true), (0o600, false)] {
        let file = fs::File::create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_landbridge"))
            .arg("genkey")
            .stdout(file)
            .output()
            .unwrap();
        assert!(output.status.success());
        assert_eq!(err(&output).contains("warning"), warned, "{mode:o}");
    }
}

#[test]
fn init_then_check() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let init = landbridge(here, &INIT, "");
    assert_eq!(code(&init), 0, "{}", err(&init));
    for part in ["group.toml", "west-1.key", "landbridge check", "systemctl enable --now"] {
        assert!(out(&init).contains(part), "{part}:\n{}", out(&init));
    }
    let key = here.join("landbridge/east-1.key");
    assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let key_text = fs::read_to_string(&key).unwrap();
    let public = out(&landbridge(here, &["pubkey"], &key_text));
    let group = fs::read_to_string(here.join("landbridge/group.toml")).unwrap();
    assert!(group.contains(public.trim()), "{group}");

    let check = landbridge(here, &["check", "--group", "landbridge/group.toml"], "");
    assert_eq!(code(&check), 0, "{}", err(&check));
    assert!(out(&check).contains("group east-west, sites east, west, networks app"));

    let with_key = ["check", "--group", "landbridge/group.toml", "--key", "landbridge/east-1.key"];
    let check = landbridge(here, &with_key, "");
    assert!(out(&check).contains("this host is east-1 of site east"), "{}", out(&check));
    let json = landbridge(here, &[&with_key[..], &["--json"]].concat(), "");
    let report: serde_json::Value = serde_json::from_str(&out(&json)).unwrap();
    assert_eq!(report["myself"]["appliance"], "east-1");
    assert_eq!(code(&json), i32::from(report["errors"] != 0));

    let again = landbridge(here, &INIT, "");
    assert_eq!(code(&again), 1);
    assert!(err(&again).contains("is there already, nothing was written"), "{}", err(&again));
    assert_eq!(fs::read_to_string(&key).unwrap(), key_text);
    let forced = landbridge(here, &[&INIT[..], &["--force", "--psk"]].concat(), "");
    assert_eq!(code(&forced), 0, "{}", err(&forced));
    assert_ne!(fs::read_to_string(&key).unwrap(), key_text);
    assert!(here.join("landbridge/group.psk").exists());
}

#[test]
fn init_without_enough() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    for (arguments, expected, exit_code) in [
        (&["init"][..], "--site NAME=ADDRESS", 2),
        (&INIT[..9], "--attach west:app=", 2),
        (&["init", "--site", "east"], "NAME=ADDRESS", 2),
        (&["init", "--out"], "--out", 2),
        (&["frobnicate"], "frobnicate", 2),
        (&[&INIT[..], &["--attach", "east:app=bridge:br0"]].concat(), "duplicate key", 1),
        (&[&INIT[..], &["--network", "7:db"]].concat(), "twice", 1),
    ] {
        let output = landbridge(here, arguments, "");
        assert_eq!(code(&output), exit_code, "{arguments:?}: {}", err(&output));
        assert!(err(&output).contains(expected), "{arguments:?}: {}", err(&output));
        assert_eq!(fs::read_dir(here).unwrap().count(), 0, "{arguments:?} wrote something");
    }
}

#[test]
fn check_tells_every_mistake() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    landbridge(here, &INIT, "");
    let path = here.join("landbridge/group.toml");
    let group = fs::read_to_string(&path).unwrap();
    let bad = group.replace("underlay", "underly").replace("id = 7", "id = 0");
    fs::write(&path, bad).unwrap();

    let check = landbridge(here, &["check", "--group", "landbridge/group.toml"], "");
    assert_eq!((code(&check), out(&check).as_str()), (1, ""));
    let said = err(&check);
    assert_eq!(said.matches("error: unknown field `underly`").count(), 2, "{said}");
    assert!(said.contains("error: network id `0` is out of range"), "{said}");
    assert!(said.contains("landbridge/group.toml:"), "{said}");
    assert!(said.contains("landbridge: 3 mistakes in landbridge/group.toml"), "{said}");

    let json = landbridge(here, &["check", "--json", "--group", "landbridge/group.toml"], "");
    let report: serde_json::Value = serde_json::from_str(&out(&json)).unwrap();
    assert_eq!(report["mistakes"].as_array().unwrap().len(), 3);
    assert_eq!((code(&json), &report["valid"]), (1, &serde_json::Value::Bool(false)));
}

#[test]
fn check_of_what_is_no_group_or_not_ours() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let check = |arguments: &[&str]| landbridge(here, &[&["check"], arguments].concat(), "");

    let absent = check(&["--group", "nothing.toml"]);
    assert_eq!(code(&absent), 1);
    assert!(err(&absent).contains("nothing.toml can't be read"), "{}", err(&absent));
    assert!(err(&absent).contains("\n  try: "), "{}", err(&absent));
    fs::write(here.join("binary"), [0xff; 100]).unwrap();
    assert!(err(&check(&["--group", "binary"])).contains("not UTF-8"));
    assert_eq!(code(&check(&["--group", "/dev/zero"])), 1);

    landbridge(here, &INIT, "");
    fs::write(here.join("other.key"), out(&landbridge(here, &["genkey"], ""))).unwrap();
    let stranger = check(&["--group", "landbridge/group.toml", "--key", "other.key"]);
    assert_eq!(code(&stranger), 1);
    assert!(out(&stranger).contains("no appliance of group"), "{}", out(&stranger));
    assert!(out(&stranger).contains("west-1 = "), "{}", out(&stranger));
    let no_key = check(&["--group", "landbridge/group.toml", "--key", "landbridge/group.toml"]);
    assert_eq!(code(&no_key), 1);
    assert!(out(&no_key).contains("holds no key"), "{}", out(&no_key));
}
