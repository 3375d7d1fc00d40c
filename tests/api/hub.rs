//! Models from a hub: brought by a running server and by the program, held to what was announced, and refused in words.

use std::fs;
use std::path::Path;

use causeway::hub::HubError;
use causeway::hub::fetch::{FetchedModel, WantedModel, fetch};
use causeway::hub::name::Revision;
use causeway::hub::transfer::{Stop, Transfer};
use causeway::settings::HubSettings;
use causeway::settings::keys::Role;
use serde_json::{Value, json};

use crate::client::{Server, wait_until};
use crate::keys::key;
use crate::test_hub::{COMMIT, ID, TOKEN, TestHub, gguf, model};

fn settings(hub: &TestHub) -> HubSettings {
    HubSettings {
        endpoint: hub.endpoint(),
        patience_seconds: 10,
        retries: 2,
        ..HubSettings::default()
    }
}

fn wanted(revision: &str) -> WantedModel {
    WantedModel {
        id: ID.parse().unwrap(),
        revision: revision.parse().unwrap(),
        file: None,
    }
}

fn fetched(hub: &TestHub, folder: &Path) -> Result<FetchedModel, HubError> {
    fetch(
        &settings(hub),
        &wanted("main"),
        folder,
        &Transfer::default(),
    )
}

fn server(hub: &TestHub) -> Server {
    let hub = settings(hub);
    Server::with(move |settings| settings.hub = hub)
}

fn begin(server: &Server, body: Value) -> String {
    let answer = server.post("/v1/library", &body);
    answer.status_is(201);
    answer.json()["id"].as_str().unwrap().to_owned()
}

fn operation(server: &Server, id: &str) -> Value {
    server.get(&format!("/v1/library/operations/{id}")).ok()
}

/// An operation once it has ended.
fn ended(server: &Server, id: &str) -> Value {
    wait_until("the operation ends", || {
        !operation(server, id)["finished_at"].is_null()
    });
    operation(server, id)
}

fn ask(server: &Server, model: &str) -> u16 {
    let request = json!({"model": model, "prompt": "x = 1", "max_tokens": 2});
    server.post("/v1/completions", &request).status
}

/// What is below a library's folder for downloads.
fn left(library: &Path) -> Vec<String> {
    let entries = fs::read_dir(library.join(".downloads"))
        .into_iter()
        .flatten();
    entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn a_model_comes_by_its_id_and_is_served() {
    for shards in [1, 2] {
        let hub = TestHub::new(model(shards));
        let mut settings = settings(&hub);
        settings.token = TOKEN.to_owned();
        hub.set(|faults| faults.gated = true);
        let server = Server::with(move |all| all.hub = settings);
        let body = json!({"hub_id": ID, "revision": "v1"});
        let id = begin(&server, body);
        let ended = ended(&server, &id);
        assert_eq!(ended["status"], "succeeded", "{ended}");
        assert_eq!(
            (&ended["entry"], &ended["commit"]),
            (&json!("tiny-llama"), &json!(COMMIT))
        );
        assert_eq!(ended["bytes_done"], ended["bytes_total"]);
        assert!(ended["bytes_total"].as_u64() > Some(30_000), "{ended}");
        assert_eq!(
            server.get("/v1/library/operations").ok()["data"],
            json!([ended])
        );
        assert_eq!(ask(&server, "tiny-llama"), 200);
        let model = server.get("/v1/models/tiny-llama").ok();
        let came_from = &model["provenance"];
        assert_eq!(came_from["hub_id"], ID);
        assert_eq!(
            (&came_from["revision"], &came_from["commit"]),
            (&json!("v1"), &json!(COMMIT))
        );
        let listed = server.get("/v1/library").ok();
        let entries = listed["data"].as_array().unwrap();
        assert!(
            entries
                .iter()
                .any(|entry| entry["id"] == "tiny-llama" && entry["loaded"] == true)
        );
        // Every file is the announced one, and those that no model needs have stayed there.
        let library = server.directory.join("library");
        let folder = library.join("tiny-llama");
        let mut names = Vec::new();
        for file in fs::read_dir(&folder).unwrap() {
            let name = file.unwrap().file_name().to_string_lossy().into_owned();
            if name != "manifest.json" {
                assert_eq!(
                    fs::read(folder.join(&name)).unwrap(),
                    hub.content(&name),
                    "{name}"
                );
                names.push(name);
            }
        }
        assert_eq!(names.len(), if shards == 1 { 3 } else { 5 }, "{names:?}");
        causeway::artifacts::Manifest::read(&folder)
            .unwrap()
            .verify(&folder)
            .unwrap();
        assert_eq!(left(&library), [""; 0]);
        assert!(!hub.has_leaked(), "another host was told the token");
        // The revision is asked for once; every file is of the commit.
        let requests = hub.requests();
        let of_revision = requests.iter().filter(|request| request.contains("v1"));
        assert_eq!(of_revision.count(), 1, "{requests:?}");

        let again = server.post("/v1/library", &json!({"hub_id": ID}));
        again.is_error(400, Some("id"), Some("already_exists"));
        server
            .post("/v1/library/tiny-llama/unload", &json!({}))
            .ok();
        assert_eq!(ask(&server, "tiny-llama"), 404);
        server.post("/v1/library/tiny-llama/load", &json!({})).ok();
        assert_eq!(ask(&server, "tiny-llama"), 200);
    }
}

#[test]
fn one_gguf_file_is_brought_and_converted() {
    let hub = TestHub::new(gguf());
    let server = server(&hub);
    let unnamed = ended(&server, &begin(&server, json!({"hub_id": ID})));
    assert_eq!(unnamed["error"]["code"], "cannot_load");
    let message = unnamed["error"]["message"].as_str().unwrap();
    assert!(message.contains("`file`: gguf/tiny.Q8_0.gguf"), "{message}");
    let body = json!({"hub_id": ID, "file": "gguf/tiny.Q8_0.gguf", "id": "quantised"});
    let ended = ended(&server, &begin(&server, body));
    assert_eq!(ended["status"], "succeeded", "{ended}");
    assert_eq!(ask(&server, "quantised"), 200);
    let model = server.get("/v1/models/quantised").ok();
    assert_eq!(model["provenance"]["file"], "gguf/tiny.Q8_0.gguf");
    let library = server.directory.join("library");
    assert_eq!(left(&library), [""; 0]);
    assert!(!library.join("quantised/tiny.Q8_0.gguf").exists());
}

#[test]
fn a_broken_transfer_goes_on_where_it_was() {
    let hub = TestHub::new(model(1));
    let folder = tempfile::tempdir().unwrap();
    let weights = hub.content("model.safetensors").len();
    // After some bytes, at once, and after more.
    let cuts = vec![1000, 0, 3000];
    hub.set(|faults| drop(faults.cuts.insert("model.safetensors".to_owned(), cuts)));
    let model = fetched(&hub, folder.path()).unwrap();
    let range = |from: usize| Some(format!("bytes={from}-"));
    assert_eq!(hub.ranges(), [None, range(1000), range(1000), range(4000)]);
    let path = model.folder.join("model.safetensors");
    assert_eq!(fs::read(path).unwrap(), hub.content("model.safetensors"));
    assert_eq!(model.commit.as_str(), COMMIT);
    assert!(model.files.iter().any(|file| file.size == weights as u64));

    // Too often in a row: what has come is kept, and another start goes on with it.
    let folder = tempfile::tempdir().unwrap();
    let cuts = vec![2000, 0, 0];
    hub.set(|faults| drop(faults.cuts.insert("model.safetensors".to_owned(), cuts)));
    let error = fetched(&hub, folder.path()).unwrap_err();
    assert_eq!(error.code(), "hub_unreachable");
    let said = error.to_string();
    assert!(
        said.contains("model.safetensors") && said.contains("hub.retries"),
        "{said}"
    );
    let model = fetched(&hub, folder.path()).unwrap();
    assert_eq!(hub.ranges().last(), Some(&range(2000)));
    let path = model.folder.join("model.safetensors");
    assert_eq!(fs::read(&path).unwrap(), hub.content("model.safetensors"));
    // All of it is there: nothing is brought again.
    let asked = hub.ranges().len();
    fetched(&hub, folder.path()).unwrap();
    assert_eq!(hub.ranges().len(), asked);

    // A host that knows no ranges sends everything anew.
    let folder = tempfile::tempdir().unwrap();
    hub.set(|faults| {
        faults
            .cuts
            .insert("model.safetensors".to_owned(), vec![1000]);
        faults.no_ranges = true;
    });
    let transfer = Transfer::default();
    let model = fetch(&settings(&hub), &wanted("main"), folder.path(), &transfer).unwrap();
    let path = model.folder.join("model.safetensors");
    assert_eq!(fs::read(path).unwrap(), hub.content("model.safetensors"));
    assert_eq!(Some(transfer.done()), transfer.total());
}

#[test]
fn a_hub_that_lists_names_alone_is_asked_for_each_file() {
    let hub = TestHub::new(model(2));
    hub.set(|faults| faults.silent_listing = true);
    let folder = tempfile::tempdir().unwrap();
    let model = fetched(&hub, folder.path()).unwrap();
    for file in &model.files {
        let content = fs::read(file.name.under(&model.folder)).unwrap();
        assert_eq!(content, hub.content(file.name.as_str()), "{}", file.name);
    }
    assert_eq!(model.files.len(), 5);
    hub.set(|faults| faults.wrong = Some("model-2-of-2.safetensors".to_owned()));
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(
        fetched(&hub, folder.path()).unwrap_err().code(),
        "hub_damaged"
    );
}

#[test]
fn content_that_was_not_announced_is_refused() {
    let hub = TestHub::new(model(1));
    hub.set(|faults| faults.wrong = Some("model.safetensors".to_owned()));
    let server = server(&hub);
    let ended = ended(&server, &begin(&server, json!({"hub_id": ID})));
    assert_eq!(ended["status"], "failed");
    assert_eq!(ended["error"]["code"], "hub_damaged");
    let message = ended["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("sha256") && message.contains("model.safetensors"),
        "{message}"
    );
    assert_eq!(ask(&server, "tiny-llama"), 404);
    assert!(!server.directory.join("library/tiny-llama").exists());
    // What was wrong is gone; once the hub has it right, it comes.
    hub.set(|faults| faults.wrong = None);
    let ended = self::ended(&server, &begin(&server, json!({"hub_id": ID})));
    assert_eq!(ended["status"], "succeeded", "{ended}");
}

#[test]
fn refusals_of_the_hub_are_passed_on_in_words() {
    let hub = TestHub::new(model(1));
    let folder = tempfile::tempdir().unwrap();
    let refused = |settings: &HubSettings, wanted: &WantedModel| {
        let error = fetch(settings, wanted, folder.path(), &Transfer::default()).unwrap_err();
        (error.code(), error.to_string())
    };
    let holds = |(code, said): (&str, String), expected: &str, words: &[&str]| {
        assert_eq!(code, expected, "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    };
    let open = settings(&hub);
    let missing = refused(&open, &wanted("v9"));
    holds(
        missing,
        "hub_not_found",
        &[ID, "v9", "Invalid rev id", &hub.endpoint()],
    );
    let other = WantedModel {
        id: "Somebody/Else".parse().unwrap(),
        ..wanted("main")
    };
    holds(
        refused(&open, &other),
        "hub_not_found",
        &["Somebody/Else", "main", "Repository not found"],
    );

    hub.set(|faults| faults.gated = true);
    let without = refused(&open, &wanted("main"));
    holds(
        without,
        "hub_access_denied",
        &[
            "Access to it is restricted",
            "hub.token",
            "CAUSEWAY_HUB__TOKEN",
        ],
    );
    let with_other = HubSettings {
        token: "hf_another".to_owned(),
        ..open.clone()
    };
    let said = refused(&with_other, &wanted("main"));
    assert!(!said.1.contains("hf_another"), "{}", said.1);
    holds(
        said,
        "hub_access_denied",
        &["gated", "account of hub.token"],
    );
    hub.set(|faults| faults.gated = false);

    let offline = HubSettings {
        offline: true,
        ..open.clone()
    };
    let asked = hub.requests().len();
    holds(
        refused(&offline, &wanted("main")),
        "hub_offline",
        &["hub.offline"],
    );
    assert_eq!(hub.requests().len(), asked);
    let nobody = HubSettings {
        endpoint: "http://127.0.0.1:9".to_owned(),
        ..open.clone()
    };
    holds(
        refused(&nobody, &wanted("main")),
        "hub_unreachable",
        &["127.0.0.1:9"],
    );

    hub.set(|faults| faults.claimed_size = Some(1 << 40));
    let small = HubSettings {
        max_download_mib: 100,
        ..open.clone()
    };
    holds(
        refused(&small, &wanted("main")),
        "too_large",
        &["1048577 MiB", "100", "hub.max_download_mib"],
    );
    let roomy = HubSettings {
        max_download_mib: u64::MAX,
        ..open.clone()
    };
    hub.set(|faults| faults.claimed_size = Some(1 << 60));
    holds(refused(&roomy, &wanted("main")), "disk_full", &["free"]);
    assert_eq!(hub.ranges(), [], "weights were asked for");
    hub.set(|faults| faults.claimed_size = None);
    for name in ["../outside", "/etc/passwd", "a/../../outside"] {
        hub.set(|faults| faults.listed = Some(name.to_owned()));
        holds(
            refused(&open, &wanted("main")),
            "hub_error",
            &["leads out of the repository"],
        );
    }
    let mut pickled = model(1);
    pickled.remove("model.safetensors");
    let hub = TestHub::new(pickled);
    holds(
        refused(&settings(&hub), &wanted("main")),
        "cannot_load",
        &["pickled (pytorch_model.bin)"],
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_model_that_cannot_be_served_leaves_nothing_behind() {
    let mut files = model(1);
    let config = String::from_utf8(files["config.json"].clone()).unwrap();
    let config = config.replace("\"llama\"", "\"mamba\"");
    files.insert("config.json".to_owned(), config.into_bytes());
    let hub = TestHub::new(files);
    let server = server(&hub);
    let ended = ended(&server, &begin(&server, json!({"hub_id": ID})));
    assert_eq!(ended["error"]["code"], "cannot_load", "{ended}");
    assert!(
        ended["error"]["message"]
            .as_str()
            .unwrap()
            .contains("mamba"),
        "{ended}"
    );
    let library = server.directory.join("library");
    assert_eq!(left(&library), [""; 0]);
    assert!(!library.join("tiny-llama").exists());
}

#[test]
fn a_download_is_watched_and_cancelled() {
    let hub = TestHub::new(model(1));
    let endpoint = hub.endpoint();
    let server = Server::with(move |settings| {
        settings.hub.endpoint = endpoint;
        settings.hub.max_waiting = 1;
    });
    hub.hold(true);
    let first = begin(&server, json!({"hub_id": ID}));
    let half = hub.content("model.safetensors").len() as u64 / 2;
    wait_until("half of the weights are there", || {
        operation(&server, &first)["bytes_done"].as_u64() > Some(half)
    });
    let now = operation(&server, &first);
    assert_eq!(now["status"], "downloading");
    assert!(
        now["bytes_done"].as_u64() < now["bytes_total"].as_u64(),
        "{now}"
    );
    assert_eq!(
        (&now["finished_at"], &now["commit"]),
        (&Value::Null, &json!(COMMIT))
    );
    // The same, another that waits, and one too many.
    let same = json!({"hub_id": ID, "id": "again"});
    server
        .post("/v1/library", &same)
        .is_error(400, Some("hub_id"), Some("in_progress"));
    let taken = json!({"hub_id": "Somebody/Else", "id": "tiny-llama"});
    server
        .post("/v1/library", &taken)
        .is_error(400, Some("id"), Some("already_exists"));
    let second = begin(&server, json!({"hub_id": "Somebody/Else"}));
    assert_eq!(operation(&server, &second)["status"], "queued");
    let third = server.post("/v1/library", &json!({"hub_id": "Somebody/More"}));
    third.is_error(503, None, Some("overloaded"));
    // What has not begun ends at once, whatever goes on.
    let cancel = |id: &str| server.post(&format!("/v1/library/operations/{id}/cancel"), &json!({}));
    cancel(&second).ok();
    assert_eq!(ended(&server, &second)["status"], "cancelled");
    assert_eq!(operation(&server, &first)["status"], "downloading");
    cancel(&first).ok();
    hub.hold(false);
    let ended = ended(&server, &first);
    assert_eq!(
        (&ended["status"], &ended["error"]),
        (&json!("cancelled"), &Value::Null)
    );
    assert_eq!(left(&server.directory.join("library")), [""; 0]);
    assert_eq!(ask(&server, "tiny-llama"), 404);
    cancel("libop-none").is_error(404, None, Some("operation_not_found"));

    let third = begin(&server, json!({"hub_id": ID}));
    assert_eq!(self::ended(&server, &third)["status"], "succeeded");
    cancel(&third).is_error(400, None, Some("wrong_status"));
}

#[test]
fn a_server_that_stops_keeps_what_has_arrived() {
    let hub = TestHub::new(model(1));
    for (stop, kept) in [(Stop::Keep, true), (Stop::Forget, false)] {
        let folder = tempfile::tempdir().unwrap();
        hub.hold(true);
        let transfer = Transfer::default();
        let half = hub.content("model.safetensors").len() as u64 / 2;
        let error = std::thread::scope(|scope| {
            let fetching =
                scope.spawn(|| fetch(&settings(&hub), &wanted("main"), folder.path(), &transfer));
            wait_until("half of the weights are there", || transfer.done() > half);
            transfer.stop(stop);
            hub.hold(false);
            fetching.join().unwrap().unwrap_err()
        });
        assert_eq!(error.code(), "cancelled");
        let there = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(there, usize::from(kept));
    }
}

#[test]
fn a_server_brings_nothing_where_its_settings_say_so() {
    let hub = TestHub::new(model(1));
    for (change, code) in [
        (
            (|hub| hub.enabled = false) as fn(&mut HubSettings),
            "hub_disabled",
        ),
        (|hub| hub.offline = true, "hub_offline"),
    ] {
        let mut settings = settings(&hub);
        change(&mut settings);
        let server = Server::with(move |all| all.hub = settings);
        let refused = server.post("/v1/library", &json!({"hub_id": ID}));
        refused.is_error(400, None, Some(code));
    }
    assert!(hub.requests().is_empty());
    let server = Server::with(|settings| {
        settings.keys = vec![key("trainer", Role::Train, None)];
    });
    let headers = [
        ("authorization", "Bearer ck-trainer"),
        ("content-type", "application/json"),
    ];
    let body = json!({"hub_id": ID}).to_string();
    let refused = server.send("POST", "/v1/library", &headers, body.as_bytes());
    refused.is_error(403, None, Some("insufficient_role"));
}

#[test]
fn a_request_names_ids_and_never_places() {
    let server = Server::new();
    for (field, value) in [
        ("hub_id", "../somewhere"),
        ("hub_id", "/etc/passwd"),
        ("hub_id", "http://127.0.0.1/x"),
        ("hub_id", "a/b/c"),
        ("revision", "../main"),
        ("revision", "main?x=1"),
        ("file", "../x.gguf"),
        ("file", "/x.gguf"),
        ("file", "README.md"),
        ("id", "../x"),
        ("id", ".downloads"),
    ] {
        let mut body = json!({"hub_id": ID});
        body[field] = json!(value);
        server.post("/v1/library", &body).blames(field);
    }
    assert_eq!(server.get("/v1/library/operations").ok()["data"], json!([]));
    assert_eq!(Revision::main().as_str(), "main");
}
