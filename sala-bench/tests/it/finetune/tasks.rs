//! Tasks besides the classification of texts: images, and the word that follows.

use std::fs;

use image::{Rgb, RgbImage};
use sala_models::{Rng, pretrained::Task};
use serde_json::{Value, json};

use super::{Place, WORDS, tokenizer};
use crate::common::succeed;

#[test]
fn images_in_class_folders_are_learnt() {
    let place = Place::new();
    let stream = Rng::new(3).stream("images");
    for (class, name) in ["left", "right"].into_iter().enumerate() {
        for i in 0..30 {
            let noise = stream.at(class as u64).at(i);
            let image = RgbImage::from_fn(8, 8, |x, y| {
                let bright = (x < 4) == (class == 0);
                let value = u8::try_from(noise.below(u64::from(x * 8 + y), 90)).unwrap();
                Rgb([value + if bright { 120 } else { 0 }; 3])
            });
            let part = if i < 22 { "train" } else { "test" };
            fs::create_dir_all(place.path(part).join(name)).unwrap();
            image
                .save(place.path(part).join(name).join(format!("{i:02}.png")))
                .unwrap();
        }
    }
    let vit = json!({"model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 12,
        "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16});
    place.model("vit", &vit, Task::ImageClassification);
    let resnet = json!({"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 4, 8, 8],
        "depths": [1, 1, 1, 1], "layer_type": "basic", "num_channels": 3});
    place.model("resnet", &resnet, Task::ImageClassification);
    place.write(
        "resnet/preprocessor_config.json",
        r#"{"size": 32, "image_mean": [0.5, 0.5, 0.5]}"#,
    );
    let comparisons = [("vit", "adamw", "f32"), ("resnet", "adamw,sala", "bf16")];
    for (model, optimizers, precision) in comparisons {
        succeed(&mut place.command(&format!(
            "finetune --model {model} --task image-classification --train train --test test --epochs 15 \
             --lr 1e-2 --rho 0.05 --batch-size 8 --optimizers {optimizers} --precision {precision} --out out-{model}"
        )));
        let summary = place.json(&format!("out-{model}/summary.json"));
        for row in summary["rows"].as_array().unwrap() {
            assert!(
                row["test"]["mean"].as_f64().unwrap() > 0.8,
                "{model}: {row}"
            );
        }
    }
    let model = "out-vit/models/adamw-seed0";
    let (said, _) =
        succeed(&mut place.command(&format!("predict --model {model} --input test/right")));
    assert_eq!(said.lines().count(), 8);
    let right = said
        .lines()
        .filter(|l| l.contains("\"label\":\"right\""))
        .count();
    assert!(
        right > 5 && said.contains("\"image\":\"test/right/22.png\""),
        "{said}"
    );
}

#[test]
fn a_language_model_learns_which_word_follows() {
    let place = Place::new();
    let gpt2 = json!({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 24,
        "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16});
    place.model("gpt2", &gpt2, Task::CausalLm);
    fs::write(place.path("gpt2/tokenizer.json"), tokenizer(&WORDS, false)).unwrap();
    // Each word is followed by the next one, or with one chance in four by any.
    let stream = Rng::new(4).stream("walk");
    let mut at = 0;
    let mut words = Vec::new();
    for i in 0..3000 {
        at = if stream.below(2 * i, 4) == 0 {
            usize::try_from(stream.below(2 * i + 1, 16)).unwrap()
        } else {
            (at + 1) % 16
        };
        words.push(WORDS[at]);
    }
    place.write("walk.txt", &words.join(" "));
    let command = "finetune --model gpt2 --task causal-lm --train walk.txt --max-length 16 --test 0.1 \
                   --epochs 4 --lr 1e-2 --accumulate 3 --out out";
    succeed(&mut place.command(command));
    let summary = place.json("out/summary.json");
    assert_eq!(summary["metric"], "perplexity");
    let perplexity = summary["rows"][0]["test"]["mean"].as_f64().unwrap();
    // Uniform over 16 words it would be 16; of the source it is 3.25.
    assert!((3.0..6.0).contains(&perplexity), "{perplexity}");
    place.write(
        "two.txt",
        "fine warm bright kind swift calm\nweak fine loud fine rude fine\n",
    );
    let model = "out/models/adamw-seed0";
    let (said, _) =
        succeed(&mut place.command(&format!("predict --model {model} --input two.txt")));
    let said: Vec<f64> = said
        .lines()
        .map(|l| {
            serde_json::from_str::<Value>(l).unwrap()["perplexity"]
                .as_f64()
                .unwrap()
        })
        .collect();
    assert!(said[0] < said[1], "the usual order is likelier: {said:?}");
}

// Catches parts of a batch that drop the same places: all blocks are alike and the weights stand still, so the loss of an
// epoch is that of its masks, and those of parts are those of as many batches.
#[test]
fn parts_of_a_batch_have_masks_of_their_own() {
    let place = Place::new();
    let gpt2 = json!({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 24,
        "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "resid_pdrop": 0.5});
    place.model("gpt2", &gpt2, Task::CausalLm);
    fs::write(place.path("gpt2/tokenizer.json"), tokenizer(&WORDS, false)).unwrap();
    place.write("same.txt", &vec![WORDS.join(" "); 40].join(" "));
    let loss = |out: &str, batches: &str| {
        succeed(&mut place.command(&format!(
            "finetune --model gpt2 --task causal-lm --train same.txt --max-length 16 --epochs 1 --lr 1e-12 \
             {batches} --out {out}"
        )));
        let lines = fs::read_to_string(place.path(out).join("runs/adamw-seed0.jsonl")).unwrap();
        let epoch: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        epoch["train_loss"].as_f64().unwrap()
    };
    let parts = loss("parts", "--batch-size 2 --accumulate 2");
    let batches = loss("batches", "--batch-size 1");
    assert!((parts - batches).abs() < 1e-5, "{parts} and {batches}");
}
