//! What goes wrong on a disk: clear messages with a way out, and nothing that was complete or saved is lost.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    EXPERIMENT, Place,
    common::{fail, succeed, wait_for},
    kill::write_images,
};

/// One run, saved after every step.
const ONE_RUN: [&str; 6] = [
    "--optimizers",
    "sala",
    "--seeds",
    "1",
    "--checkpoint-steps",
    "1",
];

fn says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{word} in {message}");
    }
}

/// Kills a run once it has been saved, and returns its checkpoint.
fn interrupted(place: &Place, out: &str) -> Vec<u8> {
    let path = place
        .path(out)
        .join("runs/sala-seed1.checkpoint.safetensors");
    let mut command = place.compare(out, &ONE_RUN);
    command.args(["--epochs", "40"]);
    let mut child = (command.stdout(Stdio::null()).stderr(Stdio::null()))
        .spawn()
        .unwrap();
    wait_for("a checkpoint", || path.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    fs::read(path).unwrap()
}

/// What `command` is under a limit of the size of files, which the system enforces as it does a full disk.
fn with_small_files(command: &Command, blocks_of_512: u32) -> Command {
    let script = format!("trap '' XFSZ; ulimit -f {blocks_of_512}; exec \"$@\"");
    let mut limited = Command::new("sh");
    limited
        .args(["-c", &script, "sh"])
        .arg(command.get_program());
    limited.args(command.get_args());
    limited.current_dir(command.get_current_dir().unwrap());
    limited
}

// Catches `println!`, which panics where nobody reads on and where a disk is full.
#[test]
fn a_reader_who_has_gone_is_no_error_and_a_full_disk_is_one() {
    let place = Place::new(EXPERIMENT);
    let words = ["--epochs", "1", "--optimizers", "sgd", "--seeds", "0"];
    let shell = |command: &Command, script: &str| {
        let mut shell = Command::new("bash");
        shell
            .args(["-c", script, "bash"])
            .arg(command.get_program());
        shell
            .args(command.get_args())
            .current_dir(command.get_current_dir().unwrap());
        shell
    };
    let data = ["data", "info", "--experiment", "experiment.toml"];
    for command in [
        place.compare("out", &words),
        place.command(&["report", "out"]),
        place.command(&["presets"]),
        place.command(&data),
    ] {
        let gone = "set -o pipefail; \"$@\" 2> said | true; code=$?; cat said >&2; exit $code";
        let (_, said) = succeed(&mut shell(&command, gone));
        assert!(!said.contains("panicked"), "{said}");
        if Path::new("/dev/full").exists() {
            let said = fail(&mut shell(&command, "exec \"$@\" > /dev/full"));
            says(&said, &["cannot write to standard output"]);
        }
    }
    let nobody = "set -o pipefail; \"$@\" --fresh 2>&1 > /dev/null | true";
    succeed(&mut shell(&place.compare("out", &words), nobody));
}

// Catches pairs whose runs were scored on different test parts, which is known only when a run has ended.
#[test]
fn a_run_on_another_test_part_is_not_recorded_beside_the_others() {
    let place = Place::new(&EXPERIMENT.replace("source = \"embedded\"", "source = \"images\""));
    let images = place.path("images");
    fs::create_dir(&images).unwrap();
    write_images(&images, "train", 4800);
    write_images(&images, "t10k", 64);
    let words = ["--epochs", "1", "--optimizers", "sgd", "--jobs", "1"];
    succeed(&mut place.compare("out", &words));
    fs::remove_file(place.path("out/runs/sgd-seed1.jsonl")).unwrap();
    write_images(&images, "t10k", 72);
    let said = fail(&mut place.compare("out", &words));
    says(
        &said,
        &[
            "test part is another one than that of the run sgd-seed0",
            "--fresh",
        ],
    );
    assert!(!place.path("out/runs/sgd-seed1.jsonl").exists());
    write_images(&images, "t10k", 64);
    succeed(&mut place.compare("out", &words));
}

#[test]
fn a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_one_before() {
    let place = Place::new(EXPERIMENT);
    let before = interrupted(&place, "out");
    let mut command = place.compare("out", &ONE_RUN);
    command.args(["--epochs", "40"]);
    let message = fail(&mut with_small_files(&command, 64));
    says(
        &message,
        &[
            "the run of sala with seed 1",
            "make room",
            "goes on from the checkpoint before",
            "File too large",
        ],
    );
    let runs = place.path("out/runs");
    let checkpoint = fs::read(runs.join("sala-seed1.checkpoint.safetensors")).unwrap();
    assert!(checkpoint == before);
    for entry in fs::read_dir(&runs).unwrap() {
        let name = entry.unwrap().file_name();
        let name = name.to_string_lossy();
        assert!(name.starts_with("sala-seed1."), "{name} is left aside");
    }
    succeed(&mut command);
    let mut whole = place.compare("whole", &ONE_RUN[..4]);
    succeed(whole.args(["--epochs", "40"]));
    assert_eq!(place.parameters("out"), place.parameters("whole"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_record_that_finds_the_disk_full_loses_no_other() {
    let place = Place::new(EXPERIMENT);
    let words = ["--epochs", "1", "--optimizers", "sgd"];
    succeed(&mut place.compare("out", &words));
    let whole = place.parameters("out");
    let (record, other) = (
        place.path("out/runs/sgd-seed1.jsonl"),
        place.path("out/runs/sgd-seed0.jsonl"),
    );
    let kept = fs::read(&other).unwrap();
    fs::remove_file(&record).unwrap();
    // Every write to this device fails as on a full disk.
    let partial = record.with_extension("jsonl.partial");
    symlink("/dev/full", &partial).unwrap();
    let message = fail(&mut place.compare("out", &words));
    says(
        &message,
        &[
            "the run of sgd with seed 1",
            "sgd-seed1.jsonl.partial",
            "No space left on device",
            "make room",
        ],
    );
    assert_eq!(fs::read(&other).unwrap(), kept);
    assert!(!record.exists());
    fs::remove_file(&partial).unwrap();
    succeed(&mut place.compare("out", &words));
    assert_eq!(place.parameters("out"), whole);
}

/// Without the power of root to write anywhere, if it is root's.
fn without_privileges(command: Command) -> Command {
    if Command::new("test")
        .args(["-w", "/"])
        .status()
        .unwrap()
        .success()
    {
        let mut plain = Command::new("setpriv");
        plain.args(["--inh-caps=-all", "--bounding-set=-all"]);
        plain.arg(command.get_program()).args(command.get_args());
        plain.current_dir(command.get_current_dir().unwrap());
        return plain;
    }
    command
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_folder_that_cannot_be_written_is_said_before_anything_runs() {
    let place = Place::new(EXPERIMENT);
    let quick = ["--epochs", "1", "--optimizers", "sgd", "--seeds", "0"];
    fs::create_dir(place.path("shut")).unwrap();
    succeed(&mut place.compare("done", &quick));
    fs::remove_file(place.path("done/.lock")).unwrap();
    for folder in ["shut", "done"] {
        set_mode(&place.path(folder), 0o555);
    }
    let new = fail(&mut without_privileges(place.compare("shut", &quick)));
    let old = fail(&mut without_privileges(place.compare("done", &quick)));
    for folder in ["shut", "done"] {
        set_mode(&place.path(folder), 0o755);
    }
    says(
        &new,
        &[
            "cannot make the folder shut/runs",
            "Permission denied",
            "--out",
        ],
    );
    says(
        &old,
        &[
            "cannot write in the run directory done",
            "Permission denied",
            "--out",
        ],
    );
    succeed(&mut place.compare("done", &quick));
}

#[test]
fn a_second_process_on_a_run_directory_is_turned_away_and_the_first_is_not_disturbed() {
    let place = Place::new(EXPERIMENT);
    let mut command = place.compare("out", &ONE_RUN);
    let mut first = (command.args(["--epochs", "40"]))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lock = place.path("out/.lock");
    wait_for("the lock", || {
        fs::read_to_string(&lock).is_ok_and(|text| !text.is_empty())
    });
    for words in [&[][..], &["--fresh"]] {
        let mut second = place.compare("out", &ONE_RUN);
        let message = fail(second.args(["--epochs", "40"]).args(words));
        let wanted = format!("out is in use by process {}; wait for it", first.id());
        says(&message, &[&wanted, "--out"]);
    }
    assert!(first.wait().unwrap().success());
    let mut whole = place.compare("whole", &ONE_RUN[..4]);
    succeed(whole.args(["--epochs", "40"]));
    assert_eq!(place.parameters("out"), place.parameters("whole"));
}

#[test]
fn a_checkpoint_that_is_spoiled_or_another_experiments_is_refused_and_stays() {
    let place = Place::new(EXPERIMENT);
    let checkpoint = interrupted(&place, "out");
    let path = place.path("out/runs/sala-seed1.checkpoint.safetensors");
    let way_out = "sala-seed1.checkpoint.safetensors cannot be gone on from; remove it";
    let mut again = place.compare("out", &ONE_RUN);
    again.args(["--epochs", "40"]);
    fs::write(&path, &checkpoint[..checkpoint.len() / 2]).unwrap();
    says(&fail(&mut again), &[way_out, "the run of sala with seed 1"]);
    // Of an experiment that differs in a number.
    let words = ["--optimizers", "sala", "--seeds", "1", "--epochs", "3"];
    succeed(&mut place.compare("other", &words));
    let whole = place.parameters("other");
    fs::remove_file(place.path("other/runs/sala-seed1.jsonl")).unwrap();
    let foreign = place.path("other/runs/sala-seed1.checkpoint.safetensors");
    fs::write(&foreign, &checkpoint).unwrap();
    let message = fail(&mut place.compare("other", &words));
    says(&message, &[way_out, "belongs to another experiment"]);
    assert!(fs::read(&foreign).unwrap() == checkpoint);
    fs::remove_file(&foreign).unwrap();
    succeed(&mut place.compare("other", &words));
    assert_eq!(place.parameters("other"), whole);
}

#[test]
fn a_record_cut_short_is_refused_with_its_place_and_the_others_are_kept() {
    let place = Place::new(EXPERIMENT);
    let words = ["--epochs", "1", "--optimizers", "sgd"];
    succeed(&mut place.compare("out", &words));
    let whole = place.parameters("out");
    let record = place.path("out/runs/sgd-seed1.jsonl");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, &text[..text.len() - 20]).unwrap();
    let message = fail(&mut place.compare("out", &words));
    says(
        &message,
        &["sgd-seed1.jsonl, line 2, is no record", "delete the file"],
    );
    assert_eq!(fs::read_to_string(&record).unwrap().len(), text.len() - 20);
    fs::remove_file(&record).unwrap();
    let (_, progress) = succeed(&mut place.compare("out", &words));
    says(&progress, &["1 complete already"]);
    assert_eq!(place.parameters("out"), whole);
}
