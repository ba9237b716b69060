//! `data info`.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::InfoArgs;
use crate::{
    data::{self, Source, Split, batches::channel_stats, files},
    hex::hex,
    shell,
};

/// Checksums of what `datasets/fetch.sh` brings.
const PUBLISHED: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../datasets/fetch/SHA256SUMS"
));

#[derive(Debug, Serialize)]
struct Info {
    source: String,
    train: PartInfo,
    test: PartInfo,
    files: Vec<FileInfo>,
}

#[derive(Debug, Serialize)]
struct PartInfo {
    /// What it is, if it is recognised by its content.
    title: Option<&'static str>,
    images: usize,
    /// Channels, height, width.
    shape: [usize; 3],
    classes: Vec<Class>,
    /// Of each channel, on the scale from 0 to 1.
    mean: Vec<f64>,
    sd: Vec<f64>,
    /// Of all pixels and then all labels.
    sha256: String,
}

#[derive(Debug, Serialize)]
struct Class {
    name: String,
    images: usize,
}

#[derive(Debug, Serialize)]
struct FileInfo {
    name: String,
    bytes: u64,
    sha256: String,
    /// As which it is known, if its checksum is.
    known: Option<&'static str>,
}

pub(super) fn info(args: &InfoArgs) -> Result<()> {
    let experiment = args.changes.experiment()?;
    let source = Source::of(&experiment.data)?;
    let train = data::load_train(&source)?;
    let test = data::load_test(&source)?;
    train.ensure_like(&test)?;
    let files = match &source {
        Source::Folder { path, .. } => listed(path)?,
        Source::Embedded | Source::Hub(_) => vec![],
    };
    let info = Info {
        source: source.to_string(),
        train: PartInfo::of(&train)?,
        test: PartInfo::of(&test)?,
        files,
    };
    if args.json {
        shell::print(serde_json::to_string_pretty(&info)? + "\n")?;
    } else {
        shell::print(info.text() + "\n")?;
    }
    Ok(())
}

impl PartInfo {
    fn of(split: &Split) -> Result<Self> {
        let all: Vec<usize> = (0..split.len()).collect();
        let stats = channel_stats(split, &all)?;
        let counts = split.class_names().iter().zip(split.counts());
        Ok(Self {
            title: split.is_known().then(|| split.title()),
            images: split.len(),
            shape: split.shape(),
            classes: counts
                .map(|(name, images)| Class {
                    name: name.clone(),
                    images,
                })
                .collect(),
            mean: stats.mean,
            sd: stats.std,
            sha256: split.fingerprint(),
        })
    }

    fn text(&self, part: &str) -> String {
        let [channels, height, width] = self.shape;
        let numbers = |values: &[f64]| {
            let values = values.iter().map(|v| format!("{v:.4}"));
            values.collect::<Vec<_>>().join(" ")
        };
        let title = self.title.unwrap_or("not recognised");
        let mut lines = vec![
            format!("{part}: {title}"),
            format!(
                "  {} images of {channels}×{height}×{width}, {} classes",
                self.images,
                self.classes.len()
            ),
            format!("  mean {}, sd {}", numbers(&self.mean), numbers(&self.sd)),
            format!("  SHA-256 of pixels and labels {}", self.sha256),
        ];
        let first = self.classes.first().map_or(0, |class| class.images);
        if self.classes.iter().all(|class| class.images == first) {
            let names: Vec<&str> = self.classes.iter().map(|c| c.name.as_str()).collect();
            lines.push(format!("  {first} of each class: {}", names.join(", ")));
        } else {
            let classes = self.classes.iter();
            lines.extend(classes.map(|class| format!("  {:>7} {}", class.images, class.name)));
        }
        lines.join("\n")
    }
}

impl Info {
    fn text(&self) -> String {
        let mut lines = vec![
            format!("source: {}", self.source),
            self.train.text("training part"),
            self.test.text("test part"),
        ];
        for file in &self.files {
            let known = file.known.unwrap_or("no known checksum");
            lines.push(format!(
                "file {}, {} bytes: {known}\n  SHA-256 {}",
                file.name, file.bytes, file.sha256
            ));
        }
        lines.join("\n")
    }
}

/// The files of a folder with their checksums.
fn listed(path: &Path) -> Result<Vec<FileInfo>> {
    let file = |path: std::path::PathBuf| {
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let sha256 = hex(&Sha256::digest(&bytes));
        Ok(FileInfo {
            name: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            bytes: bytes.len() as u64,
            known: published(&sha256),
            sha256,
        })
    };
    files::listed(path)?.into_iter().map(file).collect()
}

/// Name and file of a checksum that is published with the project.
fn published(sha256: &str) -> Option<&'static str> {
    let mut sums = PUBLISHED.lines().filter_map(|line| line.split_once("  "));
    sums.find(|(sum, _)| *sum == sha256).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::set::tests::split;

    #[test]
    fn a_part_is_counted_and_measured() {
        let part = split(vec![0, 255, 51, 204], vec![3, 3, 0, 1], [1, 1, 1]).unwrap();
        let info = PartInfo::of(&part).unwrap();
        assert_eq!((info.images, info.classes[3].images), (4, 2));
        assert!((info.mean[0] - 0.5).abs() < 1e-12, "{info:?}");
        // √((0.5² + 0.5² + 0.3² + 0.3²) / 4)
        assert!((info.sd[0] - 0.17_f64.sqrt()).abs() < 1e-12, "{info:?}");
        let text = info.text("training part");
        assert!(
            text.contains("4 images of 1×1×1, 10 classes") && text.contains("2 3\n"),
            "{text}"
        );
        let even = split((0..10).collect(), (0..10).collect(), [1, 1, 1]).unwrap();
        let text = PartInfo::of(&even).unwrap().text("test part");
        assert!(text.contains("1 of each class: 0, 1"), "{text}");
    }

    #[test]
    fn published_files_are_recognised_by_their_checksums() {
        let line = PUBLISHED
            .lines()
            .find(|l| l.ends_with("cifar-10/test_batch.png"))
            .unwrap();
        let sum = line.split_once("  ").unwrap().0;
        assert_eq!(published(sum), Some("cifar-10/test_batch.png"));
        assert_eq!(published(&"0".repeat(64)), None);
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "abc").unwrap();
        let files = listed(folder.path()).unwrap();
        assert_eq!((files[0].name.as_str(), files[0].bytes), ("a", 3));
        assert!(files[0].sha256.starts_with("ba7816bf"), "{files:?}");
    }
}
