//! Models from a hub: a server on this machine that has one, and everything that may go wrong on the way.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use candle_core::DType;
use sala_models::{
    Error,
    pretrained::{Hub, HubError, LoadOptions, ModelConfig, Snapshot, Weights},
};

use crate::{
    folders::{CLASSIFY, build, folder, names, published, store_bits},
    hub_server::{Files, ID, MAIN, OTHER, Request, Response, Server, hub},
    weight_files::write_shards,
};

/// A small BERT with a tokenizer, and files that nobody needs.
pub(crate) fn files() -> Files {
    let read = |name: &str| fs::read(folder("bert").join(name)).unwrap();
    Files::from([
        ("config.json".into(), read("config.json")),
        ("model.safetensors".into(), read("model.safetensors")),
        ("tokenizer.json".into(), b"{}".to_vec()),
        ("vocab.txt".into(), vec![]),
        ("pytorch_model.bin".into(), vec![0; 100]),
        ("README.md".into(), b"# Tiny".to_vec()),
    ])
}

/// The hub at a server, with an empty cache.
pub(crate) fn client(server: &Server) -> (tempfile::TempDir, Hub) {
    let cache = tempfile::tempdir().unwrap();
    let hub = client_with(server, cache.path());
    (cache, hub)
}

pub(crate) fn client_with(server: &Server, cache: &Path) -> Hub {
    let builder = Hub::builder().endpoint(&server.address).cache(cache);
    let builder = builder.token("secret").offline(false);
    builder
        .patience(3, Duration::from_millis(4))
        .build()
        .unwrap()
}

/// The hub's error and its words.
pub(crate) fn refused(result: sala_models::Result<Snapshot>) -> (HubError, String) {
    match result.unwrap_err() {
        Error::Hub(error) => {
            let text = error.to_string();
            (error, text)
        }
        other => panic!("{other}"),
    }
}

pub(crate) fn assert_all(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

#[test]
fn a_model_arrives_whole_and_loads_and_the_next_time_nothing_is_sent() {
    let all = files();
    let served = all.clone();
    let server = Server::new(move |request| hub(&served, request));
    let (cache, client) = client(&server);
    let mut seen = vec![];
    let mut progress = |p: sala_models::pretrained::hub::Progress<'_>| {
        assert!(p.received <= p.size);
        seen.push((p.file.to_owned(), p.received, p.size));
    };
    let snapshot = client.snapshot_with(ID, None, &mut progress).unwrap();
    assert_eq!(snapshot.commit(), Some(MAIN));
    let wanted = [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "vocab.txt",
    ];
    assert_eq!(names(snapshot.folder()), wanted);
    for name in wanted {
        let got = fs::read(snapshot.folder().join(name)).unwrap();
        assert_eq!(got, all[name], "{name}");
        let size = all[name].len() as u64;
        assert!(seen.contains(&(name.to_owned(), size, size)), "{name}");
    }
    // Where huggingface_hub looks for it.
    let repository = cache.path().join("models--acme--tiny");
    assert_eq!(snapshot.folder(), repository.join("snapshots").join(MAIN));
    assert_eq!(
        fs::read_to_string(repository.join("refs/main")).unwrap(),
        MAIN
    );
    assert_eq!(names(&repository), ["refs", "snapshots"]);

    let config = ModelConfig::read(snapshot.config().unwrap()).unwrap();
    let (store, _) = build(&config, CLASSIFY, 0, DType::F32);
    let weights = Weights::open(snapshot.weights()).unwrap();
    weights
        .load(&store, &LoadOptions::of(&config, CLASSIFY))
        .unwrap();
    assert!(snapshot.tokenizer().is_ok());

    let before = server.requests().len();
    assert_eq!(client.snapshot(ID, None).unwrap(), snapshot);
    let later = server.requests().split_off(before);
    assert!(
        later
            .iter()
            .all(|request| request.path.starts_with("/api/")),
        "{later:?}"
    );
}

#[test]
fn shards_are_fetched_by_their_index_which_comes_last() {
    let folder = tempfile::tempdir().unwrap();
    write_shards(folder.path(), &published("bert"));
    let mut all = files();
    all.remove("model.safetensors");
    for name in names(folder.path()) {
        all.insert(name.clone(), fs::read(folder.path().join(&name)).unwrap());
    }
    let served = all.clone();
    let broken = Arc::new(AtomicUsize::new(1));
    let switch = Arc::clone(&broken);
    let server = Server::new(move |request| {
        if request.path.ends_with("00002-of-00002.safetensors")
            && switch.load(Ordering::SeqCst) == 1
        {
            return Response::new(404, "");
        }
        hub(&served, request)
    });
    let (cache, client) = client(&server);
    let (error, text) = refused(client.snapshot(ID, None));
    assert!(matches!(error, HubError::NoFile { .. }), "{text}");
    assert_all(&text, &["model-00002-of-00002.safetensors", ID, MAIN]);
    // The half that is there is not taken for a model.
    let snapshots = cache.path().join("models--acme--tiny/snapshots").join(MAIN);
    assert!(names(&snapshots).contains(&"model-00001-of-00002.safetensors".to_owned()));
    assert!(matches!(
        Snapshot::local(&snapshots).unwrap_err(),
        Error::NoWeights { .. }
    ));

    broken.store(0, Ordering::SeqCst);
    let snapshot = client.snapshot(ID, None).unwrap();
    let config = ModelConfig::read(snapshot.config().unwrap()).unwrap();
    let (one, _) = build(&config, CLASSIFY, 0, DType::F32);
    let (other, _) = build(&config, CLASSIFY, 1, DType::F32);
    for (store, path) in [
        (&one, snapshot.folder()),
        (&other, &*crate::folders::folder("bert")),
    ] {
        let weights = Weights::open(path).unwrap();
        weights
            .load(store, &LoadOptions::of(&config, CLASSIFY))
            .unwrap();
    }
    assert_eq!(store_bits(&one), store_bits(&other));
    // What had arrived was not fetched again.
    assert_eq!(server.ranges("00001-of-00002.safetensors").len(), 1);
}

/// A hub whose weights lie at another server, as large files do.
pub(crate) fn with_storage(storage: &Server) -> Server {
    let (all, to) = (files(), storage.address.clone());
    Server::new(move |request| {
        if request.path.ends_with("model.safetensors") {
            return Response::redirect(format!("{to}/store/model.safetensors?key=1"));
        }
        if request.path == format!("/{ID}/resolve/{MAIN}/tokenizer.json") {
            return Response::redirect(format!("/{ID}/resolve/{MAIN}/canonical/tokenizer.json"));
        }
        let plain = Request {
            path: request.path.replace("canonical/", ""),
            ..request.clone()
        };
        hub(&all, &plain)
    })
}

#[test]
fn redirects_are_followed_and_the_token_stays_with_the_hub() {
    let weights = files().remove("model.safetensors").unwrap();
    let served = weights.clone();
    let storage = Server::new(move |request| Response::of_file(request, &served));
    let server = with_storage(&storage);
    let (_cache, client) = client(&server);
    let snapshot = client.snapshot(ID, None).unwrap();
    assert_eq!(fs::read(snapshot.weights()).unwrap(), weights);
    for request in server.requests() {
        assert_eq!(
            request.header("authorization"),
            Some("Bearer secret"),
            "{request:?}"
        );
    }
    assert!(!storage.requests().is_empty());
    for request in storage.requests() {
        assert_eq!(request.header("authorization"), None, "{request:?}");
        assert_eq!(request.path, "/store/model.safetensors?key=1");
    }
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_was() {
    let weights = files().remove("model.safetensors").unwrap();
    let (served, third) = (weights.clone(), weights.len() / 3);
    let storage = Server::new(move |request| {
        let cut = Some(third);
        Response {
            cut,
            ..Response::of_file(request, &served)
        }
    });
    let server = with_storage(&storage);
    let (_cache, client) = client(&server);
    let snapshot = client.snapshot(ID, None).unwrap();
    assert_eq!(fs::read(snapshot.weights()).unwrap(), weights);
    let last = weights.len() - 1;
    let from = |byte: usize| Some(format!("bytes={byte}-{last}"));
    let mut wanted = vec![None, from(third), from(2 * third)];
    if !weights.len().is_multiple_of(3) {
        wanted.push(from(3 * third));
    }
    assert_eq!(storage.ranges("key=1"), wanted);
}

#[test]
fn what_has_arrived_is_kept_for_another_day() {
    let weights = files().remove("model.safetensors").unwrap();
    let half = weights.len() / 2;
    let (served, calls) = (weights.clone(), AtomicUsize::new(0));
    let storage = Server::new(move |request| {
        let whole = Response::of_file(request, &served);
        if request.method == "HEAD" {
            return whole;
        }
        match calls.fetch_add(1, Ordering::SeqCst) {
            0 => Response {
                cut: Some(half),
                ..whole
            },
            // Three times nothing at all, then everything.
            1..=3 => Response {
                cut: Some(0),
                ..whole
            },
            _ => whole,
        }
    });
    let server = with_storage(&storage);
    let (cache, client) = client(&server);
    let (error, text) = refused(client.snapshot(ID, None));
    assert!(matches!(error, HubError::Interrupted { .. }), "{text}");
    assert_all(
        &text,
        &[
            "model.safetensors",
            &format!("after {half} of {} bytes", weights.len()),
            "is kept",
        ],
    );
    assert!(Snapshot::local(cache.path().join("models--acme--tiny/snapshots").join(MAIN)).is_err());

    let again = client_with(&server, cache.path());
    let snapshot = again.snapshot(ID, None).unwrap();
    assert_eq!(fs::read(snapshot.weights()).unwrap(), weights);
    let last = storage.ranges("key=1").pop().unwrap();
    assert_eq!(last, Some(format!("bytes={half}-{}", weights.len() - 1)));
}

#[test]
fn a_server_that_sends_everything_again_is_not_taken_for_the_rest() {
    let weights = files().remove("model.safetensors").unwrap();
    let (served, calls) = (weights.clone(), AtomicUsize::new(0));
    let storage = Server::new(move |request| {
        let first = request.method == "GET" && calls.fetch_add(1, Ordering::SeqCst) == 0;
        Response {
            cut: first.then_some(1000),
            ..Response::new(200, &*served)
        }
    });
    let server = with_storage(&storage);
    let (_cache, client) = client(&server);
    let snapshot = client.snapshot(ID, None).unwrap();
    assert_eq!(fs::read(snapshot.weights()).unwrap(), weights);
}

#[test]
fn a_damaged_copy_in_the_cache_is_fetched_again() {
    let all = files();
    let served = all.clone();
    let server = Server::new(move |request| hub(&served, request));
    let (_cache, client) = client(&server);
    let snapshot = client.snapshot(ID, None).unwrap();
    fs::write(snapshot.weights(), b"short").unwrap();
    client.snapshot(ID, None).unwrap();
    assert_eq!(
        fs::read(snapshot.weights()).unwrap(),
        all["model.safetensors"]
    );
}

#[test]
fn branches_and_commits_are_kept_apart() {
    let all = files();
    let config = all["config.json"].clone();
    let server = Server::new(move |request| hub(&all, request));
    let (cache, client) = client(&server);
    let other = client.snapshot(ID, Some("other")).unwrap();
    let main = client.snapshot(ID, Some(MAIN)).unwrap();
    assert_eq!((other.commit(), main.commit()), (Some(OTHER), Some(MAIN)));
    assert_eq!(fs::read(main.config().unwrap()).unwrap(), config);
    assert_ne!(fs::read(other.config().unwrap()).unwrap(), config);
    let refs = cache.path().join("models--acme--tiny/refs");
    assert_eq!(names(&refs), ["other"]);
}

#[test]
fn offline_takes_what_the_cache_has_and_asks_nobody() {
    let all = files();
    let server = Server::new(move |request| hub(&all, request));
    let (cache, online) = client(&server);
    let builder = Hub::builder().endpoint(&server.address).cache(cache.path());
    let offline = builder.offline(true).build().unwrap();
    let (error, text) = refused(offline.snapshot(ID, None));
    assert!(matches!(error, HubError::NotCached { .. }), "{text}");
    assert_all(
        &text,
        &[
            ID,
            "`main`",
            "HF_HUB_OFFLINE",
            &cache.path().to_string_lossy(),
        ],
    );
    assert!(server.requests().is_empty());

    let snapshot = online.snapshot(ID, None).unwrap();
    let count = server.requests().len();
    assert_eq!(offline.snapshot(ID, None).unwrap(), snapshot);
    assert_eq!(offline.snapshot(ID, Some(MAIN)).unwrap(), snapshot);
    let (error, _) = refused(offline.snapshot(ID, Some("other")));
    assert!(matches!(error, HubError::NotCached { .. }), "{error}");
    assert_eq!(server.requests().len(), count);
}

// Catches a run that fails, or another that waits for the network, for a model that is on the disk.
#[test]
fn without_the_hub_the_cache_is_taken_where_it_is_whole() {
    let all = files();
    let up = Arc::new(AtomicUsize::new(1));
    let switch = Arc::clone(&up);
    let server = Server::new(move |request| match switch.load(Ordering::SeqCst) {
        1 => hub(&all, request),
        _ => Response::new(503, "gone for lunch"),
    });
    let (_cache, client) = client(&server);
    let snapshot = client.snapshot(ID, None).unwrap();
    let count = server.requests().len();
    assert_eq!(client.snapshot(ID, Some(MAIN)).unwrap(), snapshot);
    assert_eq!(server.requests().len(), count, "a commit was asked for");

    up.store(0, Ordering::SeqCst);
    assert_eq!(client.snapshot(ID, None).unwrap(), snapshot);
    assert!(server.requests().len() > count);
    for absent in ["other", OTHER] {
        let (error, text) = refused(client.snapshot(ID, Some(absent)));
        assert!(matches!(error, HubError::Request { .. }), "{text}");
        assert_all(&text, &[ID, &server.address, "no whole copy"]);
    }
    // Half a file is no model.
    fs::write(snapshot.weights(), b"short").unwrap();
    for revision in [None, Some(MAIN)] {
        let (error, text) = refused(client.snapshot(ID, revision));
        assert!(matches!(error, HubError::Request { .. }), "{text}");
    }
    up.store(1, Ordering::SeqCst);
    assert_eq!(client.snapshot(ID, Some(MAIN)).unwrap(), snapshot);
    assert!(fs::metadata(snapshot.weights()).unwrap().len() > 100);
}

#[test]
fn a_cache_that_python_filled_is_used() {
    let all = files();
    let served = all.clone();
    let server = Server::new(move |request| hub(&served, request));
    let (cache, client) = client(&server);
    // Its layout: links into `blobs`.
    let repository = cache.path().join("models--acme--tiny");
    let snapshot = repository.join("snapshots").join(MAIN);
    fs::create_dir_all(repository.join("blobs")).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(repository.join("blobs/abc"), &all["model.safetensors"]).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("../../blobs/abc", snapshot.join("model.safetensors")).unwrap();
    client.snapshot(ID, None).unwrap();
    let fetched = usize::from(!cfg!(unix));
    assert_eq!(server.ranges("model.safetensors").len(), fetched);
}
