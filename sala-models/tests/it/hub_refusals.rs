//! What a hub may refuse or get wrong, and what a user is told.

use sala_models::pretrained::{HubError, Snapshot};

use crate::{
    hub::{assert_all, client, files, refused, with_storage},
    hub_server::{ID, MAIN, Response, Server, hub},
};

#[test]
fn what_is_not_there_is_named() {
    let all = files();
    let server = Server::new(move |request| hub(&all, request));
    let (_cache, client) = client(&server);
    let (error, text) = refused(client.snapshot("acme/absent", None));
    assert!(matches!(error, HubError::NoRepository { .. }), "{text}");
    assert_all(
        &text,
        &["`acme/absent`", &server.address, "check owner and name"],
    );

    let (error, text) = refused(client.snapshot(ID, Some("v9")));
    assert!(matches!(error, HubError::NoRevision { .. }), "{text}");
    assert_all(
        &text,
        &[ID, "`v9`", "a branch, a tag or a whole commit hash"],
    );

    let count = server.requests().len();
    for id in [
        "",
        "/",
        "a/b/c",
        "../x",
        "a b",
        "https://x/y",
        "acme/",
        ".hidden",
    ] {
        let (error, text) = refused(client.snapshot(id, None));
        assert!(matches!(error, HubError::Name { .. }), "{text}");
    }
    for revision in ["../../x", "a//b", "", ".."] {
        let (error, text) = refused(client.snapshot(ID, Some(revision)));
        assert!(matches!(error, HubError::NoRevision { .. }), "{text}");
    }
    assert_eq!(
        server.requests().len(),
        count,
        "a name that cannot be was sent"
    );
}

#[test]
fn a_repository_without_configuration_or_safetensors_is_no_model() {
    let mut all = files();
    all.remove("model.safetensors");
    let served = all.clone();
    let server = Server::new(move |request| hub(&served, request));
    let (_cache, hub_client) = client(&server);
    let (error, text) = refused(hub_client.snapshot(ID, None));
    assert!(matches!(error, HubError::NoWeights { .. }), "{text}");
    assert_all(&text, &["pytorch_model.bin", "pickle", "refs/pr/N"]);
    let asked = server.requests();
    assert!(
        !asked
            .iter()
            .any(|request| request.path.ends_with("pytorch_model.bin")),
        "{asked:?}"
    );

    let mut all = files();
    all.remove("config.json");
    let server = Server::new(move |request| hub(&all, request));
    let (_cache, client) = client(&server);
    let (error, text) = refused(client.snapshot(ID, None));
    assert!(matches!(error, HubError::NoFile { .. }), "{text}");
    assert_all(&text, &["`config.json`", MAIN]);
}

#[test]
fn who_may_not_read_a_model_is_told_what_to_do() {
    for (status, place) in [
        (401, "/api/"),
        (403, "/api/"),
        (401, "/tree/"),
        (403, "/resolve/"),
    ] {
        let all = files();
        let server = Server::new(move |request| {
            if request.path.contains(place) {
                return Response::new(status, "").with("X-Error-Message", "Access is restricted");
            }
            hub(&all, request)
        });
        let (_cache, client) = client(&server);
        let (error, text) = refused(client.snapshot(ID, None));
        assert!(matches!(error, HubError::Denied { .. }), "{text}");
        let status = format!("({status}: Access is restricted)");
        assert_all(&text, &[ID, &status, "HF_TOKEN", "accept its terms"]);
        assert!(!text.contains("secret"), "the token is told: {text}");
    }
}

#[test]
fn a_file_of_another_size_than_listed_is_refused() {
    let weights = files().remove("model.safetensors").unwrap();
    for served in [
        &weights[..weights.len() - 1],
        &[&weights[..], b"x"].concat(),
    ] {
        let got = served.len();
        let served = served.to_vec();
        let storage = Server::new(move |request| Response::of_file(request, &served));
        let server = with_storage(&storage);
        let (cache, client) = client(&server);
        let (error, text) = refused(client.snapshot(ID, None));
        assert!(matches!(error, HubError::WrongSize { .. }), "{text}");
        let wanted = format!("lists {} bytes, but sends {got}", weights.len());
        assert_all(&text, &["model.safetensors", ID, &wanted]);
        assert!(
            Snapshot::local(cache.path().join("models--acme--tiny/snapshots").join(MAIN)).is_err()
        );
    }
}

#[test]
fn a_hub_that_is_not_there_is_said_to_be() {
    let server = Server::new(|_| Response::new(200, ""));
    let (_cache, client) = client(&server);
    drop(server);
    let (error, text) = refused(client.snapshot(ID, None));
    assert!(matches!(error, HubError::Request { .. }), "{text}");
    assert_all(&text, &[ID, "127.0.0.1"]);

    let server = Server::new(|_| Response::new(200, "<html>"));
    let (_cache, client) = self::client(&server);
    let (error, text) = refused(client.snapshot(ID, None));
    assert!(matches!(error, HubError::Request { .. }), "{text}");
}
