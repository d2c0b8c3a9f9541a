//! Holds the dependencies to the part of `deny.toml` that can be checked without
//! a network: licences, sources, bans. Advisories need cargo-deny's database.

use std::process::Command;

use serde_json::Value;

#[test]
fn dependencies_are_what_deny_toml_allows() {
    let policy: toml::Table = include_str!("../deny.toml").parse().unwrap();
    let mut complaints = Vec::new();
    let mut checked = 0;
    for target in policy["graph"]["targets"].as_array().unwrap() {
        for package in packages(target.as_str().unwrap()) {
            checked += 1;
            complaints.extend(complaints_about(&package, &policy));
        }
    }
    complaints.sort();
    complaints.dedup();
    assert!(checked > 20, "cargo metadata told of {checked} packages only");
    assert!(complaints.is_empty(), "against deny.toml:\n{}", complaints.join("\n"));
}

/// Each package that the lock file brings in for `target`, tests included.
fn packages(target: &str) -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .args(["--filter-platform", target])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

fn complaints_about(package: &Value, policy: &toml::Table) -> Vec<String> {
    let text = |field: &str| package[field].as_str().unwrap_or_default();
    let name = format!("{} {}", text("name"), text("version"));
    let mut complaints = Vec::new();

    match allowed(text("license"), policy["licenses"]["allow"].as_array().unwrap()) {
        Ok(true) => {}
        Ok(false) => complaints.push(format!("{name}: licence {}", text("license"))),
        Err(error) => complaints.push(format!("{name}: licence {:?}: {error}", text("license"))),
    }
    let own = text("name") == env!("CARGO_PKG_NAME");
    if !own && text("source") != "registry+https://github.com/rust-lang/crates.io-index" {
        complaints.push(format!("{name}: comes from {}", package["source"]));
    }
    let banned = policy["bans"]["deny"].as_array().unwrap();
    if banned.iter().any(|ban| ban["crate"].as_str() == Some(text("name"))) {
        complaints.push(format!("{name}: is banned"));
    }
    if own {
        let dependencies = package["dependencies"].as_array().unwrap();
        let wild = dependencies.iter().filter(|dependency| dependency["req"] == "*");
        complaints.extend(wild.map(|dependency| format!("{}: any version", dependency["name"])));
    }
    complaints
}

fn allowed(licence: &str, allow: &[toml::Value]) -> Result<bool, spdx::ParseError> {
    // Old crates write `MIT/Apache-2.0`.
    let expression = spdx::Expression::parse_mode(licence, spdx::ParseMode::LAX)?;
    Ok(expression
        .evaluate(|term| allow.iter().any(|name| name.as_str() == Some(&term.to_string()))))
}

#[test]
fn licence_expressions_are_evaluated() {
    let allow: Vec<toml::Value> = ["MIT", "Apache-2.0"].map(Into::into).into();
    for (licence, expected) in [
        ("MIT", true),
        ("MIT/GPL-3.0-only", true),
        ("MIT OR GPL-3.0-only", true),
        ("MIT AND GPL-3.0-only", false),
        ("(MIT OR Apache-2.0) AND ISC", false),
        ("Apache-2.0 WITH LLVM-exception", false),
        ("MPL-2.0", false),
    ] {
        assert_eq!(allowed(licence, &allow).unwrap(), expected, "{licence}");
    }
    assert!(allowed("", &allow).is_err());
}
