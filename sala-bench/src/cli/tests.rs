//! Words to experiments.

use clap::CommandFactory;

use super::*;
use crate::speed::Workload;

fn changes(words: &[&str]) -> Changes {
    Cli::try_parse_from([&["sala-bench"], words].concat())
        .unwrap()
        .compare
        .changes
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn speed_takes_everything_unless_told() {
    let parse = |words: &[&str]| {
        let words = [&["sala-bench", "speed"], words].concat();
        match Cli::try_parse_from(words).unwrap().command {
            Some(Command::Speed(args)) => args,
            other => panic!("{other:?}"),
        }
    };
    let args = parse(&[]);
    assert_eq!(args.workloads, Workload::SMALL);
    let timing = &args.timing;
    assert_eq!((timing.rounds.get(), timing.threads.get()), (7, 2));
    assert_eq!(timing.kernels, [Kernels::Auto]);
    let args = parse(&[
        "--workloads",
        "minilm,small-cnn",
        "--kernels",
        "auto,composed",
    ]);
    assert_eq!(args.workloads, [Workload::MiniLm, Workload::SmallCnn]);
    assert_eq!(args.timing.kernels, [Kernels::Auto, Kernels::Composed]);
}

#[test]
fn the_built_in_experiment_and_search_are_valid() {
    let experiment = changes(&[]).experiment().unwrap();
    let names: Vec<_> = experiment
        .optimizers
        .iter()
        .map(|o| o.name.as_str())
        .collect();
    assert_eq!(
        names[..6],
        [
            "sgd",
            "lookahead",
            "sam",
            "sam-every-2",
            "sala",
            "sala-quarter"
        ]
    );
}

#[test]
fn train_takes_one_optimizer_and_one_seed() {
    let parse = |words: &[&str]| {
        let words = [&["sala-bench", "train"], words].concat();
        match Cli::try_parse_from(words)?.command {
            Some(Command::Train(args)) => args.experiment(),
            other => panic!("{other:?}"),
        }
    };
    let of = |words: &[&str]| {
        let experiment = parse(words).unwrap();
        assert_eq!(experiment.optimizers.len(), 1);
        assert!(experiment.running.save_models);
        (
            experiment.optimizers[0].name.clone(),
            experiment.training.seeds,
        )
    };
    assert_eq!(of(&[]), ("sgd".into(), vec![0]));
    let words = ["--optimizer", "sala", "--seed", "7"];
    assert_eq!(of(&words), ("sala".into(), vec![7]));
    assert_eq!(
        of(&["--optimizers", "sam,sala", "--seeds", "3,4"]),
        ("sam".into(), vec![3])
    );
    assert!(parse(&["--optimizer", "adan"]).is_err());
    assert!(parse(&["--seed", "1", "--seeds", "2"]).is_err());
}

#[test]
fn options_change_the_experiment() {
    let words = [
        "--seeds",
        "7,8",
        "--epochs",
        "3",
        "--label-noise",
        "0",
        "--optimizers",
        "sala,sgd",
    ];
    let experiment = changes(&words).experiment().unwrap();
    assert_eq!(experiment.training.seeds, [7, 8]);
    assert_eq!(
        (
            experiment.training.budget,
            experiment.data.label_noise.share.to_bits()
        ),
        (Budget::Epochs(3), 0)
    );
    assert_eq!(experiment.optimizers[0].name, "sala");
    let message = format!(
        "{:#}",
        changes(&["--epochs", "0"]).experiment().unwrap_err()
    );
    assert!(
        message.contains("training.epochs must be >= 1, got 0"),
        "{message}"
    );
}

#[test]
fn presets_networks_and_augmentations_are_put_together() {
    let words = "--preset cifar-10 --data-dir DIR --network wrn-28-10 --augment cutmix --train per-class:50";
    let words: Vec<&str> = words.split(' ').collect();
    let experiment = changes(&words).experiment().unwrap();
    assert_eq!(
        (experiment.name.as_str(), experiment.data.source.as_str()),
        ("cifar-10", "DIR")
    );
    assert_eq!(experiment.network, "wrn-28-10".parse().unwrap());
    assert_eq!(experiment.data.train, Some(Amount::PerClass(50)));
    let names = |experiment: &Experiment| -> Vec<&str> {
        experiment
            .data
            .augment
            .iter()
            .map(Augmentation::name)
            .collect()
    };
    assert_eq!(names(&experiment), ["crop", "flip", "cutmix"]);
    let words = ["--preset", "cifar-10", "--augment", "none,flip"];
    assert_eq!(names(&changes(&words).experiment().unwrap()), ["flip"]);
    let message = changes(&["--preset", "cifar"])
        .experiment()
        .unwrap_err()
        .to_string();
    assert!(message.contains("cifar-100"), "{message}");
    for words in [
        ["--augment", "cutmx"],
        ["--network", "resnet19x"],
        ["--label-noise", "flip:0.1"],
    ] {
        assert!(Cli::try_parse_from([&["sala-bench"], &words[..]].concat()).is_err());
    }
    let depth = changes(&["--network", "resnet19"])
        .experiment()
        .unwrap_err();
    assert!(format!("{depth:#}").contains("resnet.depth"), "{depth:#}");
}
