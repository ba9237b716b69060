//! Puts the commit that is built and candle's version into the program, for its records.

use std::{fs, process::Command};

fn main() {
    println!(
        "cargo::rustc-env=SALA_COMMIT={}",
        commit().unwrap_or_else(|| "unknown".into())
    );
    println!(
        "cargo::rustc-env=CANDLE_VERSION={}",
        candle().unwrap_or_else(|| "unknown".into())
    );
    println!("cargo::rerun-if-changed=../.git/HEAD");
    println!("cargo::rerun-if-changed=../.git/refs/heads");
    println!("cargo::rerun-if-changed=../Cargo.lock");
}

fn commit() -> Option<String> {
    let output = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// The version that stands after candle-core's name in the lock file.
fn candle() -> Option<String> {
    let lock = fs::read_to_string("../Cargo.lock").ok()?;
    let (_, after) = lock.split_once("name = \"candle-core\"\nversion = \"")?;
    Some(after.split('"').next()?.to_owned())
}
