//! `doctor`: what the program is, what it finds on this machine, and what is wrong with it.

use std::{
    env,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::{
    data::{self, Source},
    device,
    speed::Machine,
};

/// Where packages and `datasets/fetch.sh data` put data sets.
const KNOWN_PLACES: [&str; 4] = [
    "/usr/share/datasets/fashion-mnist",
    "data/fashion-mnist",
    "data/mnist",
    "data/cifar-10",
];

/// Everything that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Findings {
    #[serde(flatten)]
    machine: Machine,
    /// Of the program, as it was built.
    features: Vec<&'static str>,
    allocator: &'static str,
    // `threads` is the number of them, which the machine's description has.
    #[serde(rename = "thread_settings")]
    threads: Threads,
    kernels: Kernels,
    devices: Vec<Found>,
    data: Vec<Found>,
    output: Found,
    /// What will not work; empty when all is well.
    problems: Vec<String>,
}

/// Threads that runs are given, unless `--jobs` divides them.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Threads {
    processors: usize,
    /// `RAYON_NUM_THREADS` and `CANDLE_NUM_THREADS`, which hold where they are set.
    rayon: Option<String>,
    candle: Option<String>,
}

/// Which forms of operations and updates are used.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Kernels {
    /// `auto` or `composed`.
    choice: String,
    convolutions: String,
    /// How cuDNN's algorithms are chosen.
    cudnn: String,
}

/// A thing and what was found of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Found {
    name: String,
    ok: bool,
    state: String,
}

impl Found {
    fn new(name: impl Into<String>, state: Result<String>) -> Self {
        Self {
            name: name.into(),
            ok: state.is_ok(),
            state: state.unwrap_or_else(|error| format!("{error:#}")),
        }
    }
}

impl Findings {
    /// Looks at everything; `folders` are looked into for data besides the known places, `out` is where runs
    /// are to go.
    pub(crate) fn gather(folders: &[PathBuf], out: &Path) -> Self {
        let mut problems = Vec::new();
        let kernels = Kernels::read(&mut problems);
        for name in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
            if let Some(text) = text_of(name)
                && text.parse::<usize>().is_err()
            {
                problems.push(format!("{name}: a number wanted, got `{text}`"));
            }
        }
        let known = KNOWN_PLACES.iter().map(Path::new).filter(|p| p.is_dir());
        let embedded = ("embedded".to_owned(), Source::Embedded);
        let folder = |path: &Path| {
            let source = Source::Folder {
                path: path.to_owned(),
                resize: None,
            };
            (path.display().to_string(), source)
        };
        let asked = folders.iter().map(|path| folder(path));
        let data: Vec<_> = std::iter::once(embedded)
            .chain(known.map(folder))
            .chain(asked)
            .map(|(name, source)| Found::new(name, contents(&source)))
            .collect();
        let output = Found::new(out.display().to_string(), writable(out));
        let broken = data.iter().chain([&output]).filter(|found| !found.ok);
        problems.extend(broken.map(|found| format!("{}: {}", found.name, found.state)));
        Self {
            machine: Machine::here(),
            features: features(),
            allocator: if cfg!(all(unix, feature = "jemalloc")) {
                "jemalloc"
            } else {
                "the system's"
            },
            threads: Threads {
                processors: std::thread::available_parallelism().map_or(1, usize::from),
                rayon: text_of("RAYON_NUM_THREADS"),
                candle: text_of("CANDLE_NUM_THREADS"),
            },
            kernels,
            devices: devices(),
            data,
            output,
            problems,
        }
    }

    pub(crate) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let environment = &self.machine.environment;
        let or_none = |words: &[String]| match words {
            [] => "none".to_owned(),
            _ => words.join(" "),
        };
        let set = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".into());
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<14} {value}");
        };
        line(
            "version",
            format!(
                "sala-bench {}, commit {}, candle {}",
                environment.version, environment.commit, environment.candle
            ),
        );
        line(
            "system",
            format!("{} on {}", environment.os, environment.arch),
        );
        line("processor", self.machine.cpu.clone());
        line("instructions", or_none(&self.machine.instructions));
        line(
            "threads",
            format!(
                "{} processors; RAYON_NUM_THREADS {}, CANDLE_NUM_THREADS {}",
                self.threads.processors,
                set(&self.threads.rayon),
                set(&self.threads.candle)
            ),
        );
        let features: Vec<_> = self.features.iter().map(ToString::to_string).collect();
        line("features", or_none(&features));
        line("allocator", self.allocator.into());
        line(
            "kernels",
            format!(
                "{}, convolutions {}, cuDNN's algorithms by {}",
                self.kernels.choice, self.kernels.convolutions, self.kernels.cudnn
            ),
        );
        let founds = [("device", &self.devices), ("data", &self.data)];
        for (what, founds) in founds {
            for found in founds {
                line(what, format!("{}: {}", found.name, found.state));
            }
        }
        line(
            "output",
            format!("{}: {}", self.output.name, self.output.state),
        );
        for problem in &self.problems {
            line("problem", problem.clone());
        }
        text
    }
}

fn text_of(variable: &str) -> Option<String> {
    env::var_os(variable).map(|value| value.to_string_lossy().into_owned())
}

fn features() -> Vec<&'static str> {
    let all = [
        ("cuda", cfg!(feature = "cuda")),
        ("cudnn", cfg!(feature = "cudnn")),
        ("jemalloc", cfg!(feature = "jemalloc")),
        ("hub", cfg!(feature = "hub")),
        ("metal", cfg!(feature = "metal")),
        ("parquet", cfg!(feature = "parquet")),
    ];
    let there = all.into_iter().filter(|(_, there)| *there);
    there.map(|(name, _)| name).collect()
}

impl Kernels {
    fn read(problems: &mut Vec<String>) -> Self {
        let mut say = |choice: sala_models::Result<String>| {
            choice.unwrap_or_else(|error| {
                problems.push(error.to_string());
                "unknown".into()
            })
        };
        let choice = sala_models::kernels::choice().map(|c| format!("{c:?}").to_lowercase());
        let precision = sala_models::kernels::conv_precision();
        let search = sala_models::kernels::conv_search();
        Self {
            choice: say(choice),
            convolutions: say(precision.map(|p| format!("{p:?}").to_lowercase())),
            cudnn: say(search.map(|s| format!("{s:?}").to_lowercase())),
        }
    }
}

/// Devices that runs can be given; that one is not there is no problem.
fn devices() -> Vec<Found> {
    let candidates = device::candidates().into_iter();
    candidates
        .map(|device| Found::new(device.to_string(), device::describe(device)))
        .collect()
}

/// What a source holds, by reading all of its training part.
fn contents(source: &Source) -> Result<String> {
    let part = data::load_train(source)?;
    let [channels, height, width] = part.shape();
    Ok(format!(
        "{}: {} images of {channels}×{height}×{width}",
        part.title(),
        part.len()
    ))
}

/// Whether files can be made in a folder, or in the nearest one above it that is there.
pub(crate) fn writable(folder: &Path) -> Result<String> {
    let absolute = std::path::absolute(folder)?;
    let there = absolute.ancestors().find(|path| path.exists());
    let there = there.unwrap_or(Path::new("/"));
    ensure!(there.is_dir(), "{} is no folder", there.display());
    let probe = there.join(format!(".sala-bench-{}", std::process::id()));
    std::fs::write(&probe, "")
        .map_err(|error| anyhow::anyhow!("cannot write in {}: {error}", there.display()))?;
    std::fs::remove_file(&probe)?;
    Ok("writable".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_still_to_be_made_is_writable_where_it_would_be() {
        let folder = tempfile::tempdir().unwrap();
        assert!(writable(&folder.path().join("a/b")).is_ok());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let message = writable(&file.join("x")).unwrap_err().to_string();
        assert!(message.contains("is no folder"), "{message}");
    }

    /// JSON whose objects have every key once.
    struct Strict;

    impl<'de> serde::Deserialize<'de> for Strict {
        fn deserialize<D: serde::Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
            reader.deserialize_any(Self)
        }
    }

    impl<'de> serde::de::Visitor<'de> for Strict {
        type Value = Self;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("JSON")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
            let mut keys = std::collections::BTreeSet::new();
            while let Some((key, Strict)) = map.next_entry::<String, Self>()? {
                if !keys.insert(key.clone()) {
                    return Err(serde::de::Error::custom(format!("`{key}` is there twice")));
                }
            }
            Ok(self)
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
            while list.next_element::<Self>()?.is_some() {}
            Ok(self)
        }

        fn visit_str<E>(self, _: &str) -> Result<Self, E> {
            Ok(self)
        }

        fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
            Ok(self)
        }

        fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
            Ok(self)
        }

        fn visit_unit<E>(self) -> Result<Self, E> {
            Ok(self)
        }
    }

    #[test]
    fn its_json_has_every_key_once() {
        let twice = serde_json::from_str::<Strict>("[{\"a\": 1, \"a\": {}}]").map(|_| ());
        assert!(
            twice
                .unwrap_err()
                .to_string()
                .contains("`a` is there twice")
        );
        let folder = tempfile::tempdir().unwrap();
        let json = serde_json::to_string(&Findings::gather(&[], folder.path())).unwrap();
        serde_json::from_str::<Strict>(&json).map(|_| ()).unwrap();
        assert!(
            json.contains("\"thread_settings\":{\"processors\""),
            "{json}"
        );
    }

    #[test]
    fn what_does_not_work_is_a_problem_and_what_is_not_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let well = Findings::gather(&[], folder.path());
        assert_eq!(well.problems(), [""; 0]);
        let text = well.text();
        for words in [
            "version",
            "embedded: Fashion-MNIST",
            "cpu: there",
            "writable",
        ] {
            assert!(text.contains(words), "{words} in {text}");
        }
        let ill = Findings::gather(&[folder.path().join("none")], folder.path());
        assert_eq!(ill.problems().len(), 1);
        assert!(
            ill.problems()[0].contains("is not a folder"),
            "{:?}",
            ill.problems()
        );
        assert!(ill.text().contains("problem"));
    }
}
