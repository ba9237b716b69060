//! `finetune` and `predict` as a user runs them, on models of a few thousand parameters.

mod precision;
mod stopped;
mod tasks;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use sala_models::{
    Rng, VarStore,
    pretrained::{ModelConfig, SaveOptions, Task, save::save},
};
use serde_json::{Value, json};

use crate::common::{fail, succeed};

/// Words of a little language. Those of the first half make a text good, of the second half bad.
const WORDS: [&str; 16] = [
    "fine", "warm", "bright", "kind", "swift", "calm", "fresh", "brave", "dull", "cold", "grim",
    "rude", "slow", "loud", "stale", "weak",
];

/// A folder of its own with small models and data.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    /// The program with these words.
    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sala-bench"));
        command
            .args(words.split_whitespace())
            .current_dir(self.0.path())
            .env_remove("RUST_LOG");
        command
    }

    /// A model folder with random weights.
    fn model(&self, name: &str, config: &Value, task: Task) {
        let config = ModelConfig::from_json(config.clone()).unwrap();
        let store = VarStore::new(11, candle_core::DType::F32, &candle_core::Device::Cpu);
        config.build(task, &store, Rng::new(11)).unwrap();
        let (folder, options) = (self.path(name), SaveOptions::of(&config));
        save(&store, &config.to_json(), &folder, &options).unwrap();
    }

    /// BERT without a head, with its tokenizer.
    fn bert(&self) {
        let config = json!({"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 24,
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
            "max_position_embeddings": 24, "hidden_dropout_prob": 0.1});
        self.model("bert", &config, Task::SentenceEmbedding);
        fs::write(self.path("bert/tokenizer.json"), tokenizer(&WORDS, true)).unwrap();
    }

    /// Texts of 2 to 9 words; the side with more words decides the label.
    fn texts(&self, name: &str, count: u64, seed: u64) {
        let stream = Rng::new(seed).stream(name);
        let mut table = String::from("review,verdict\n");
        for i in 0..count {
            let (at, good) = (stream.at(i), i % 2 == 0);
            let own = 2 + at.below(0, 4);
            let other = at.below(1, own);
            let word = |k: u64, side: bool| {
                WORDS[usize::from(!side) * 8 + usize::try_from(at.below(9 + k, 8)).unwrap()]
            };
            let mut words: Vec<&str> = (0..own).map(|k| word(k, good)).collect();
            words.extend((0..other).map(|k| word(20 + k, !good)));
            let order = at.at(1).permutation(words.len());
            let words: Vec<&str> = order.into_iter().map(|k| words[k]).collect();
            writeln!(
                table,
                "{},{}",
                words.join(" "),
                if good { "good" } else { "bad" }
            )
            .unwrap();
        }
        self.write(name, &table);
    }

    /// `finetune` of the small BERT on `train.csv`.
    fn finetune(&self, out: &str, words: &str) -> Command {
        self.command(&format!(
            "finetune --model bert --task text-classification --train train.csv --text-column review \
             --label-column verdict --pooling mean --max-length 16 --lr 3e-3 --out {out} {words}"
        ))
    }

    /// The records of all runs.
    fn runs(&self, out: &str) -> BTreeMap<(String, u64), Value> {
        let text = fs::read_to_string(self.path(out).join("runs.jsonl")).unwrap();
        let entry = |line: &str| {
            let run: Value = serde_json::from_str(line).unwrap();
            let name = run["optimizer"].as_str().unwrap().to_owned();
            ((name, run["seed"].as_u64().unwrap()), run)
        };
        text.lines().map(entry).collect()
    }

    fn parameters(&self, out: &str) -> BTreeMap<(String, u64), String> {
        let runs = self.runs(out).into_iter();
        runs.map(|(cell, run)| (cell, run["parameters"].as_str().unwrap().to_owned()))
            .collect()
    }
}

/// A tokenizer of whole words, which asks for padding and truncation to four tokens.
fn tokenizer(words: &[&str], special: bool) -> String {
    let all = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        .into_iter()
        .chain(words.iter().copied());
    let vocab: serde_json::Map<String, Value> = all
        .enumerate()
        .map(|(i, w)| (w.to_owned(), i.into()))
        .collect();
    let around = json!({"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]});
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 4}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [], "normalizer": null, "decoder": null,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": if special { around } else { Value::Null },
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    })
    .to_string()
}

/// The small BERT and texts to train it on.
fn reviews() -> Place {
    let place = Place::new();
    place.bert();
    place.texts("train.csv", 240, 1);
    place
}

#[test]
fn a_model_learns_is_compared_saved_and_predicts() {
    let place = reviews();
    place.texts("test.csv", 60, 2);
    let words = "--test test.csv --optimizers adamw,lookahead,sam,sala --seeds 2 --epochs 6 --rho 0.05 \
--layerwise-lr-decay 0.9 --accumulate 2";
    let (table, progress) = succeed(&mut place.finetune("out", words));
    for words in ["adamw", "sala", "test − adamw", "climbed", "Model:"] {
        assert!(table.contains(words), "{words} in {table}");
    }
    assert!(
        progress.contains("216 texts to train on, 24 for validation, 60 for test; 2 classes"),
        "{progress}"
    );
    assert!(progress.contains("[ 8/8]"), "{progress}");
    assert!(
        progress.contains("transformers loads this folder as a classifier by the first token"),
        "{progress}"
    );
    assert!(
        progress.contains("sala, seed 1: epoch 6/6, loss 0."),
        "{progress}"
    );
    let summary = place.json("out/summary.json");
    assert_eq!(
        (summary["complete"].clone(), summary["metric"].clone()),
        (json!(true), json!("accuracy"))
    );
    for row in summary["rows"].as_array().unwrap() {
        // Half of the texts are good, so chance is 0.5.
        assert!(
            row["test"]["mean"].as_f64().unwrap() > 0.8,
            "it learns: {row}"
        );
    }
    let csv = fs::read_to_string(place.path("out/summary.csv")).unwrap();
    assert_eq!(csv.lines().count(), 5);
    assert!(place.json("out/environment.json")["commit"].is_string());
    for run in place.runs("out").values() {
        let test = &run["test"];
        for metric in ["accuracy", "macro_f1", "matthews", "loss"] {
            assert!(test[metric].is_number(), "{metric} in {test}");
        }
    }

    // One model is kept: that of the best run, whole, without a checkpoint beside the records.
    let models: Vec<_> = fs::read_dir(place.path("out/models"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    let [model] = &models[..] else {
        panic!("one model: {models:?}");
    };
    let left = fs::read_dir(place.path("out/runs")).unwrap();
    assert!(
        left.map(|e| e.unwrap().path())
            .all(|p| p.extension().is_some_and(|e| e == "jsonl"))
    );
    assert!(model.join("tokenizer.json").is_file() && model.join("finetune.toml").is_file());
    let model = model.to_str().unwrap();
    let config: Value =
        serde_json::from_slice(&fs::read(format!("{model}/config.json")).unwrap()).unwrap();
    assert_eq!(config["id2label"], json!({"0": "bad", "1": "good"}));

    place.write("new.txt", "brave calm fine\n\nrude grim\n");
    let (lines, _) =
        succeed(&mut place.command(&format!("predict --model {model} --input new.txt")));
    let said: Vec<Value> = lines
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(
        (said[0]["label"].as_str(), said[1]["label"].as_str()),
        (Some("good"), Some("bad"))
    );
    assert_eq!(said[0]["text"], "brave calm fine");
    // The empty line between them has no prediction, and the next one keeps its number.
    assert_eq!((&said[0]["line"], &said[1]["line"]), (&json!(1), &json!(3)));
    predictions_come_as_the_lines_do(&place, model);
    let probabilities = said[0]["probabilities"].as_object().unwrap();
    let sum: f64 = probabilities.values().map(|p| p.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-6);
    let (csv, _) = succeed(&mut place.command(&format!(
        "predict --model {model} --input test.csv --format csv --text-column review"
    )));
    assert!(csv.starts_with("text,label,bad,good\n"), "{csv}");
    let right = fs::read_to_string(place.path("test.csv")).unwrap();
    let hits = csv
        .lines()
        .zip(right.lines())
        .skip(1)
        .filter(|(said, right)| said.split(',').nth(1) == right.split(',').nth(1));
    let wanted = table_of_best(&place, model);
    let share = hits.count() as f64 / 60.0;
    assert!(
        (share - wanted).abs() < 1e-12,
        "predict says what the test part was scored by: {share} and {wanted}"
    );
}

fn predictions_come_as_the_lines_do(place: &Place, model: &str) {
    let many = "rude grim\nbrave calm fine\n\n".repeat(40);
    place.write("many.txt", &many);
    // Sixteen texts at once: they are sorted among themselves, and come out as they went in.
    let words = format!("predict --model {model} --input many.txt --batch-size 1 --format csv");
    let (csv, _) = succeed(&mut place.command(&words));
    assert!(csv.starts_with("text,label,bad,good,line\n"), "{csv}");
    let lines: Vec<&str> = many.lines().collect();
    let not_empty = (1..).filter(|line| line % 3 != 0);
    for (row, place) in csv.lines().skip(1).zip(not_empty) {
        let cells: Vec<&str> = row.split(',').collect();
        assert_eq!(cells[0], lines[place - 1]);
        assert_eq!(cells[4], place.to_string());
        assert_eq!(cells[1], if place % 3 == 1 { "bad" } else { "good" });
    }
    assert_eq!(csv.lines().count(), 81);
}

// Catches runs that are paired although data or weights behind the same path were replaced between them, and numbers
// that are credited to a program that did not make them.
#[test]
fn complete_runs_belong_to_their_data_and_to_the_program_that_made_them() {
    let place = reviews();
    let words = "--optimizers adamw,sam --seeds 1 --epochs 1 --keep none";
    succeed(&mut place.finetune("out", words));
    let environment = fs::read_to_string(place.path("out/environment.json")).unwrap();
    let earlier = environment.replace("\"commit\": \"", "\"commit\": \"earlier-");
    place.write("out/environment.json", &earlier);
    let record = place.path("out/runs/adamw-seed0.jsonl");
    let text = fs::read_to_string(&record).unwrap();
    let program = place.runs("out")[&("adamw".into(), 0)]["program"].clone();
    let by_another = text.replace(program.as_str().unwrap(), "0.0.1 earlier");
    assert_ne!(by_another, text);
    fs::write(&record, by_another).unwrap();
    fs::remove_file(place.path("out/runs/sam-seed0.jsonl")).unwrap();

    let (table, said) = succeed(&mut place.finetune("out", words));
    assert!(
        said.contains("made by another version of the program"),
        "{said}"
    );
    assert!(
        table.contains("made by different versions of the program (0.0.1 earlier made 1, "),
        "{table}"
    );
    let kept = fs::read_to_string(place.path("out/environment.json")).unwrap();
    assert_eq!(kept, earlier);

    place.texts("train.csv", 240, 7);
    for file in ["out/runs/sam-seed0.jsonl", "nothing"] {
        let message = fail(&mut place.finetune("out", words));
        for wanted in ["was made of other data", "adamw-seed0", "--fresh"] {
            assert!(message.contains(wanted), "{wanted} in {message}");
        }
        let _ = fs::remove_file(place.path(file));
    }
    succeed(&mut place.finetune("out", &format!("{words} --fresh")));

    // Other weights under the same name.
    let (weights, other) = (place.path("bert/model.safetensors"), place.path("other"));
    let mut bytes = fs::read(&weights).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    bytes[8 + usize::try_from(header).unwrap()] ^= 1;
    fs::write(&other, bytes).unwrap();
    fs::rename(&other, &weights).unwrap();
    let message = fail(&mut place.finetune("out", words));
    assert!(message.contains("or from other weights"), "{message}");
}

// Catches a test part that was trained on, and scores of an epoch that the same part chose.
#[test]
fn parts_that_share_examples_or_choose_and_judge_are_told_of() {
    let place = reviews();
    let train = fs::read_to_string(place.path("train.csv")).unwrap();
    // Longer than those that are trained on, and each with another beginning.
    let text = |i: usize| {
        (0..12)
            .map(|k| WORDS[(i + k) % 16])
            .collect::<Vec<_>>()
            .join(" ")
    };
    let row = |i: usize| format!("{},{}\n", text(i), ["good", "bad"][i % 2]);
    let other: String = (0..14).map(row).collect();
    let other = format!("review,verdict\n{other}");
    place.write("other.csv", &other);
    let shared: Vec<&str> = other.lines().chain(train.lines().skip(1).take(7)).collect();
    place.write("test.csv", &shared.join("\n"));
    let words = "--validation other.csv --epochs 1 --keep none";
    let (_, said) = succeed(&mut place.finetune("out", &format!("{words} --test test.csv")));
    assert!(
        said.contains("7 of 21 examples of the test part are in the training part too"),
        "{said}"
    );
    assert!(
        said.contains("14 of 21 examples of the test part are in the validation part too"),
        "{said}"
    );
    assert!(!said.contains("examples of the validation part"), "{said}");
    let chosen = format!("{words} --early-stopping 1 --optimizers adamw,sam --seeds 2");
    let (table, said) = succeed(&mut place.finetune("chosen", &chosen));
    assert!(said.contains("--test 0.2 keeps a part"), "{said}");
    assert!(
        table.contains("not given") && table.contains("no verdict is given"),
        "{table}"
    );
}

/// The test accuracy of the run whose model was kept.
fn table_of_best(place: &Place, model: &str) -> f64 {
    let kept = Path::new(model)
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned();
    let runs = place.runs("out");
    let run = runs
        .iter()
        .find(|((name, seed), _)| format!("{name}-seed{seed}") == kept);
    run.unwrap().1["test"]["accuracy"].as_f64().unwrap()
}

#[test]
fn every_optimizer_meets_the_same_head_order_and_masks() {
    // SAM of radius 0 takes both passes at the same point. It ends at the bits of its base only if head,
    // order and masks are the base's, and the masks the same in both passes.
    let place = reviews();
    let words = "--optimizers adamw,sam --rho 0 --seeds 3,4 --epochs 2 --keep none";
    succeed(&mut place.finetune("out", words));
    let parameters = place.parameters("out");
    let of = |name: &str, seed| &parameters[&(name.to_owned(), seed)];
    assert_eq!(of("adamw", 3), of("sam", 3));
    assert_eq!(of("adamw", 4), of("sam", 4));
    assert_ne!(of("adamw", 3), of("adamw", 4));
    assert!(!place.path("out/models").exists());
}

#[test]
fn a_batch_in_parts_has_the_gradient_of_the_whole() {
    let place = reviews();
    // Of 10 texts in 4 parts the last has one text, which must not count as much as three.
    let words = "--batch-size 10 --epochs 1 --clip-norm 0 --keep none --set hidden_dropout_prob=0.0 \
                 --set attention_probs_dropout_prob=0.0";
    succeed(&mut place.finetune("whole", words));
    succeed(&mut place.finetune("parts", &format!("{words} --accumulate 4")));
    let epoch = |out: &str| -> Value {
        let text = fs::read_to_string(place.path(out).join("runs/adamw-seed0.jsonl")).unwrap();
        serde_json::from_str(text.lines().next().unwrap()).unwrap()
    };
    for field in ["train_loss", "grad_norm"] {
        let [whole, parts] = ["whole", "parts"].map(|out| epoch(out)[field].as_f64().unwrap());
        assert!(
            (whole - parts).abs() < 1e-4 * whole,
            "{field}: {whole} and {parts}"
        );
    }
}

#[test]
fn what_is_frozen_keeps_its_bits() {
    let place = reviews();
    let frozen = "--freeze bert.embeddings.* bert.encoder.layer.0.* --epochs 1";
    succeed(&mut place.finetune("out", frozen));
    let read = |folder: PathBuf| {
        let weights = candle_core::safetensors::load(
            folder.join("model.safetensors"),
            &candle_core::Device::Cpu,
        );
        weights.unwrap()
    };
    let (before, after) = (
        read(place.path("bert")),
        read(place.path("out/models/adamw-seed0")),
    );
    for (name, value) in &before {
        let values = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let same = values(value) == values(&after[name]);
        let frozen = name.contains("embeddings") || name.contains("layer.0.");
        assert_eq!(same, frozen, "{name}");
    }
}

#[test]
fn early_stopping_takes_the_best_epochs_weights() {
    let place = reviews();
    // A rate that falls apart after some epochs, so that the best is not the last.
    let words = "--lr 2e-2 --metric loss --test 0.2 --schedule constant --warm-up 0 --optimizers sala --rho 0.05";
    let stopping = format!("{words} --early-stopping 2 --epochs 30");
    succeed(&mut place.finetune("out", &stopping));
    let text = fs::read_to_string(place.path("out/runs/sala-seed0.jsonl")).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let (run, epochs) = lines.split_last().unwrap();
    let losses: Vec<f64> = epochs
        .iter()
        .map(|e| e["validation"]["loss"].as_f64().unwrap())
        .collect();
    let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let best = 1 + losses.iter().position(|&l| l <= least).unwrap();
    assert_eq!(
        (run["epoch"].as_u64(), &run["validation"]["loss"]),
        (Some(best as u64), &json!(least))
    );
    assert!(
        losses.len() == best + 2 && best < 28,
        "stops two epochs after the best: {losses:?}"
    );
    // A run that ends with that epoch has the same weights.
    succeed(&mut place.finetune("shorter", &format!("{words} --epochs {best}")));
    let shorter = &place.runs("shorter")[&("sala".to_owned(), 0)];
    for field in ["validation", "test", "parameters"] {
        assert_eq!(shorter[field], run[field], "{field}");
    }
}

#[test]
fn a_specification_in_toml_does_what_the_options_do() {
    let place = reviews();
    succeed(&mut place.finetune("options", "--epochs 1 --optimizers sala --rho 0.1"));
    let spec = r#"
        name = "bert"
        task = "text-classification"
        model = { path = "bert", pooling = "mean" }
        [data]
        train = ["train.csv"]
        text_column = "review"
        label_column = "verdict"
        max_length = 16
        [training]
        epochs = 1
        [[optimizers]]
        name = "sala"
        base = "adamw"
        lr = 3e-3
        weight_decay = 0.01
        clip_norm = 1.0
        method = { kind = "sala", k = 2, alpha = 0.5, rho = 0.1 }
    "#;
    place.write("spec.toml", spec);
    succeed(&mut place.command("finetune --spec spec.toml --out toml"));
    assert_eq!(place.parameters("options"), place.parameters("toml"));
    place.write("bad.toml", &spec.replace("epochs", "epoch"));
    let message = fail(&mut place.command("finetune --spec bad.toml"));
    assert!(
        message.contains("bad.toml") && message.contains("`epoch`"),
        "{message}"
    );
}

#[test]
fn mistakes_are_named_before_anything_runs() {
    let place = reviews();
    let says = |words: &str, wanted: &[&str]| {
        let message = fail(&mut place.finetune("x", words));
        assert!(
            wanted.iter().all(|w| message.contains(w)),
            "{wanted:?} in {message}"
        );
        assert!(!place.path("x").exists(), "{message}");
    };
    says(
        "--text-column texts",
        &["no column `texts`", "review, verdict"],
    );
    place.write(
        "odd.csv",
        "review,verdict\nfine calm,good\ncold grim,mixed\n",
    );
    says("--test odd.csv", &["odd.csv", "label `mixed`", "bad, good"]);
    place.write("empty.csv", "review,verdict\n");
    says("--validation empty.csv", &["empty.csv has no rows"]);
    // The same file under another name is the same file.
    let train = fs::read_to_string(place.path("train.csv")).unwrap();
    place.write("copy.csv", &train);
    says(
        "--test ./train.csv",
        &["data.test: ./train.csv is the file of data.train"],
    );
    says(
        "--validation copy.csv",
        &["data.validation: copy.csv is the file of data.train"],
    );
    says(
        "--set hiden_size=3",
        &["no `hiden_size`", "did you mean `hidden_size`?"],
    );
    says("--set foo=3", &["config.json has no `foo`"]);
    says("--max-length 99", &["24 tokens", "99"]);
    says("--validation 0.0001", &["data.validation", "240 examples"]);
    says("--freeze no.such.name", &["`no.such.name`"]);
    says("--model nowhere", &["nowhere"]);
    says("--task causal-lm", &["type bert", "not for this task"]);
    let more: Vec<&str> = WORDS
        .iter()
        .copied()
        .chain(["a", "b", "c", "d", "e"])
        .collect();
    fs::write(place.path("bert/tokenizer.json"), tokenizer(&more, true)).unwrap();
    says(
        "",
        &["does not belong to the model", "ids up to 24", "24 entries"],
    );
}

#[test]
fn a_trained_model_is_trained_on_with_its_head() {
    let place = reviews();
    succeed(&mut place.finetune("first", "--epochs 5"));
    let first = &place.runs("first")[&("adamw".to_owned(), 0)];
    // One more step at a rate of zero: what it scores is what the saved head scores.
    let again = "--model first/models/adamw-seed0 --epochs 1 --lr 0 --seeds 7,8";
    succeed(&mut place.finetune("again", again));
    for run in place.runs("again").values() {
        assert_eq!(run["validation"], first["validation"]);
    }
}
