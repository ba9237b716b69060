//! Kills the program at random moments, again and again, and looks whether anything shows in the end.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::common::succeed;

const KILLS: u32 = 50;

/// Running statistics, masks, moments, slow weights, a remembered direction: all that a run has to remember.
const EXPERIMENT: &str = r#"
    name = "killed"
    description = "Small enough to be run dozens of times."
    [data]
    source = "images"
    label_noise = 0.2
    validation = 40
    [network]
    kind = "cnn"
    widths = [4]
    dropout = 0.3
    [training]
    epochs = 12
    batch_size = 16
    schedule = "cosine"
    seeds = [0, 1]
    [running]
    save_models = true
    tensorboard = true
    checkpoint_steps = 7
    [[optimizers]]
    name = "sgd"
    base = "sgd-nesterov"
    lr = 0.05
    weight_decay = 5e-4
    method = { kind = "base" }
    [[optimizers]]
    name = "look-sam"
    base = "sgd-nesterov"
    lr = 0.05
    weight_decay = 5e-4
    method = { kind = "look-sam", k = 4, alpha = 0.5, rho = 0.1 }
    [[optimizers]]
    name = "sala"
    base = "adamw"
    lr = 2e-3
    weight_decay = 0.01
    clip_norm = 1.0
    method = { kind = "sala", k = 3, alpha = 0.5, rho = 0.1, direction_fraction = 0.25 }
"#;

/// Random numbers, the same every time: Steele, Lea and Flood's `SplitMix64`.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    fn share(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// IDX files of `n` images of 8×8 pixels: a bright row says the class, the rest is noise.
pub(crate) fn write_images(folder: &Path, part: &str, n: u32) {
    let mut noise = Random(u64::from(n));
    let (mut images, mut labels) = (Vec::new(), Vec::new());
    for i in 0..n {
        let class = i % 8;
        for pixel in 0..64 {
            let bright = if pixel / 8 == class { 120 } else { 0 };
            images.push(u8::try_from(bright + noise.bits() % 100).unwrap());
        }
        labels.push(u8::try_from(class).unwrap());
    }
    let write = |name: String, sizes: &[u32], data: &[u8]| {
        let mut bytes = vec![0, 0, 8, u8::try_from(sizes.len()).unwrap()];
        bytes.extend(sizes.iter().flat_map(|s| s.to_be_bytes()));
        bytes.extend(data);
        fs::write(folder.join(name), bytes).unwrap();
    };
    write(format!("{part}-images-idx3-ubyte"), &[n, 8, 8], &images);
    write(format!("{part}-labels-idx1-ubyte"), &[n], &labels);
}

fn compare(place: &Path, out: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sala-bench"));
    let words = ["compare", "--experiment", "killed.toml", "--out", out];
    command.args(words).args(["--jobs", "2"]);
    command.current_dir(place).env_remove("RUST_LOG");
    command
}

fn files(folder: &Path) -> BTreeMap<String, PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.is_file())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into(), path))
        .collect()
}

/// A run's lines without their times.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    let line = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        for (name, value) in value.as_object_mut().unwrap() {
            if name.ends_with("_s") {
                *value = Value::Null;
            }
        }
        value
    };
    text.lines().map(line).collect()
}

/// The events of a run without their times.
fn events(path: &Path) -> Vec<Vec<u8>> {
    let file = fs::read(path).unwrap();
    let (mut rest, mut events) = (&file[..], Vec::new());
    while let Some((length, behind)) = rest.split_first_chunk::<8>() {
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap();
        let mut event = behind[4..4 + length].to_vec();
        event[1..9].fill(0);
        if event.windows(13).any(|w| w == b"epoch/seconds") {
            // The last value of such an event.
            event.truncate(length - 4);
        }
        events.push(event);
        rest = &behind[4 + length + 4..];
    }
    events
}

/// Everything that the program leaves must be the same but for the times.
fn assert_same(place: &Path, killed: &str, whole: &str) {
    let (killed, whole) = (place.join(killed), place.join(whole));
    let names = |folder: &Path| files(folder).into_keys().collect::<Vec<_>>();
    assert_eq!(names(&killed), names(&whole));
    for (name, path) in files(&whole.join("runs")) {
        assert_eq!(
            lines(&killed.join("runs").join(&name)),
            lines(&path),
            "{name}"
        );
        let run = name.trim_end_matches(".jsonl");
        let model = format!("models/{run}.safetensors");
        let model = |folder: &Path| fs::read(folder.join(&model)).unwrap();
        assert!(model(&killed) == model(&whole), "the model of {run}");
        let log = format!("tensorboard/{run}/events.out.tfevents.sala-bench");
        let (there, here) = (events(&killed.join(&log)), events(&whole.join(&log)));
        assert_eq!(there.len(), here.len(), "{log}");
        assert!(there == here, "{log}");
    }
    for folder in ["runs", "models"] {
        assert_eq!(names(&killed.join(folder)), names(&whole.join(folder)));
    }
    // The report consists of records: with the same times it is the same, byte for byte.
    for (name, path) in files(&whole.join("runs")) {
        fs::copy(path, killed.join("runs").join(name)).unwrap();
    }
    let out = killed.file_name().unwrap().to_string_lossy();
    succeed(&mut compare(place, &out));
    for (name, path) in files(&whole) {
        if name != ".lock" {
            let there = fs::read(killed.join(&name)).unwrap();
            assert!(there == fs::read(path).unwrap(), "{name}");
        }
    }
}

#[test]
fn a_comparison_killed_fifty_times_at_random_moments_ends_as_one_that_never_was() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    fs::write(place.join("killed.toml"), EXPERIMENT).unwrap();
    fs::create_dir(place.join("images")).unwrap();
    write_images(&place.join("images"), "train", 240);
    write_images(&place.join("images"), "t10k", 80);

    let start = Instant::now();
    succeed(&mut compare(place, "whole"));
    let whole = start.elapsed();

    let (mut moments, mut kills, mut completed, mut continued) = (Random(6), 0, 0, 0);
    let log = place.join("log");
    while kills < KILLS {
        let mut child = compare(place, "killed")
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::max(
            whole.mul_f64(moments.share()),
            Duration::from_millis(1),
        ));
        let status = child.try_wait().unwrap();
        if status.is_none() {
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
        }
        let said = fs::read_to_string(&log).unwrap();
        continued += said.matches("goes on from step").count();
        if let Some(status) = status {
            assert!(status.success(), "{said}");
            assert_same(place, "killed", "whole");
            fs::remove_dir_all(place.join("killed")).unwrap();
            completed += 1;
        } else {
            assert!(!said.contains("error"), "{said}");
        }
    }
    succeed(&mut compare(place, "killed"));
    assert_same(place, "killed", "whole");
    assert!(
        continued >= 10,
        "of {kills} kills, {completed} completions, only {continued} runs went on from a checkpoint"
    );
}
