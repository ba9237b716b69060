//! Data sets, augmentations and networks by name, as a user meets them.

use std::{fs, path::Path};

use image::{Rgb, RgbImage};
use sala_models::Rng;
use serde_json::Value;

use crate::{
    EXPERIMENT, Place,
    common::{fail, succeed},
};

/// A data set of pictures of 12×12 in folders: `bright` and `dark` ones with noise, 40 of each for training.
fn pictures(folder: &Path) {
    let stream = Rng::new(1).stream("pictures");
    for (part, count) in [("train", 40), ("test", 10)] {
        for (class, level) in [("bright", 120), ("dark", 40)] {
            let folder = folder.join(part).join(class);
            fs::create_dir_all(&folder).unwrap();
            for i in 0..count {
                let noise = stream.at(level).at(i);
                let image = RgbImage::from_fn(12, 12, |x, y| {
                    let value = level + noise.below(u64::from(y * 12 + x), 100);
                    Rgb([u8::try_from(value).unwrap(); 3])
                });
                image.save(folder.join(format!("{i}.png"))).unwrap();
            }
        }
    }
}

#[test]
fn a_folder_of_pictures_is_trained_on_with_everything_at_once() {
    let place = Place::new(EXPERIMENT);
    pictures(&place.path("pictures"));
    let words = "--data-dir pictures --validation 10 --train per-class:30 --label-noise pair-flip:0.1 --seeds 0 \
                 --network resnet10-4 --augment crop,flip,autoaugment,random-erasing,mixup --batch-size 16";
    let words: Vec<&str> = words.split_whitespace().collect();
    let (table, _) = succeed(&mut place.compare("out", &words));
    assert!(table.contains("sala"), "{table}");
    let parameters = place.parameters("out");
    // A radius of zero is no climb: the same batches for both.
    let of = |name: &str| &parameters[&(name.to_owned(), 0)];
    assert_eq!(of("sgd"), of("sam-of-radius-0"));
    succeed(place.compare("again", &words).env("RAYON_NUM_THREADS", "1"));
    assert_eq!(parameters, place.parameters("again"));
    let without: Vec<&str> = [&words[..], &["--augment", "none"]].concat();
    let many: Vec<&str> = words
        .iter()
        .map(|w| w.trim_start_matches("per-class:"))
        .collect();
    let many: Vec<&str> = many
        .into_iter()
        .map(|w| if w == "30" { "71" } else { w })
        .collect();
    let message = fail(&mut place.compare("x", &many));
    assert!(message.contains("data.train"), "{message}");
    succeed(&mut place.compare("plain", &without));
    assert_ne!(parameters, place.parameters("plain"));
}

#[test]
fn info_says_what_the_data_are() {
    let place = Place::new(EXPERIMENT);
    let (text, _) = succeed(&mut place.command(&["data", "info"]));
    for words in [
        "Fashion-MNIST, first 500 training images of each class",
        "5000 images of 1×28×28, 10 classes",
        "500 of each class: T-shirt/top",
    ] {
        assert!(text.contains(words), "{words} in {text}");
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets/fashion-mnist");
    let mut command = place.command(&["data", "info", "--json", "--data-dir"]);
    let (json, _) = succeed(command.arg(folder));
    let info: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(info["test"]["title"], "Fashion-MNIST, test set");
    assert_eq!(info["train"]["classes"][9]["images"], 500);
    let mean = info["train"]["mean"][0].as_f64().unwrap();
    assert!((0.28..0.30).contains(&mean), "{mean}");
    let files = info["files"].as_array().unwrap();
    assert!(
        files
            .iter()
            .any(|f| f["name"] == "train-images-idx3-ubyte.gz"),
        "{files:?}"
    );
}

#[test]
fn a_preview_is_a_picture_of_images_and_epochs() {
    let place = Place::new(EXPERIMENT);
    let words = "data preview --images 3 --columns 4 --augment crop,cutmix --out grid.png";
    let words: Vec<&str> = words.split(' ').collect();
    let (text, _) = succeed(&mut place.command(&words));
    assert!(
        text.contains("grid.png: 3 images") && text.contains("crop, cutmix"),
        "{text}"
    );
    let grid = image::open(place.path("grid.png")).unwrap();
    // 28 pixels, enlarged three times, with gaps of four.
    assert_eq!((grid.width(), grid.height()), (5 * 88 + 4, 3 * 88 + 4));
    let first = fs::read(place.path("grid.png")).unwrap();
    succeed(&mut place.command(&words));
    assert_eq!(fs::read(place.path("grid.png")).unwrap(), first);
    let message = fail(&mut place.command(&["data", "preview", "--images", "5001"]));
    assert!(message.contains("at most the 5000"), "{message}");
}

#[test]
fn the_bench_of_the_input_keeps_every_time() {
    let place = Place::new(EXPERIMENT);
    let words = "data bench --experiment experiment.toml --rounds 3 --augment flip --out out";
    let words: Vec<&str> = words.split(' ').collect();
    let (text, _) = succeed(&mut place.command(&words));
    assert!(text.contains("3 pairs of steps"), "{text}");
    let json = fs::read_to_string(place.path("out/input-pipeline.json")).unwrap();
    let report: Value = serde_json::from_str(&json).unwrap();
    for times in ["make_ms", "without_ms", "with_ms", "wait_ms"] {
        assert_eq!(report[times].as_array().unwrap().len(), 3, "{times}");
    }
    assert!(
        report["experiment"]
            .as_str()
            .unwrap()
            .contains("kind = \"flip\"")
    );
}

#[test]
fn presets_are_listed_and_say_where_their_data_come_from() {
    let place = Place::new(EXPERIMENT);
    let (table, _) = succeed(&mut place.command(&["presets"]));
    for name in ["fashion-mnist-noise", "cifar-10-small", "cifar-100"] {
        assert!(table.contains(name), "{table}");
    }
    if !cfg!(feature = "hub") {
        let message = fail(&mut place.command(&["compare", "--preset", "cifar-10", "--out", "x"]));
        assert!(message.contains("--data-dir"), "{message}");
    }
}
