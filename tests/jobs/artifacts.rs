//! What the artifact store promises: in a local folder, and in a bucket where `TEST_S3` names a service.

use std::fs;
use std::path::Path;
use std::time::Duration;

use causeway::jobs::artifact_store::{ArtifactStore, ArtifactStoreError};
use causeway::jobs::job::StoredFile;

use crate::installation::{Database, Installation, databases};

/// A folder with a file below another folder, and one that is longer than what is sent at once.
fn write(folder: &Path) {
    fs::create_dir_all(folder.join("below")).unwrap();
    fs::write(folder.join("below/short.txt"), "text").unwrap();
    let long: Vec<u8> = (0..20_000_000u32)
        .map(|number| (number % 251) as u8)
        .collect();
    fs::write(folder.join("long.bin"), long).unwrap();
    fs::write(folder.join("empty"), "").unwrap();
}

#[tokio::test]
async fn a_folder_comes_back_as_it_was() {
    for database in databases() {
        let installation = Installation::new(database).await;
        let (path, artifacts) = (installation.path(), &installation.artifacts);
        let folder = path.join("folder");
        write(&folder);
        let sha256 = artifacts.put(&folder).await.unwrap();
        assert_eq!(artifacts.put(&folder).await.unwrap(), sha256);
        assert_eq!(installation.store.places().await.unwrap().len(), 1);
        let back = path.join("back");
        artifacts.get(&sha256, &back).await.unwrap();
        for file in ["below/short.txt", "long.bin", "empty"] {
            let (was, is) = (fs::read(folder.join(file)), fs::read(back.join(file)));
            assert!(was.unwrap() == is.unwrap(), "{file}");
        }
        artifacts.verify(&sha256).await.unwrap();
        fs::write(folder.join("empty"), "no more").unwrap();
        assert_ne!(artifacts.put(&folder).await.unwrap(), sha256);
        let missing = artifacts.get(&"0".repeat(64), &path.join("missing")).await;
        assert!(
            matches!(missing, Err(ArtifactStoreError::Gone(_))),
            "{missing:?}"
        );
    }
}

#[tokio::test]
async fn damage_is_found_and_nothing_of_it_stays() {
    let installation = Installation::new(Database::Sqlite).await;
    let folder = installation.path().join("folder");
    write(&folder);
    let sha256 = installation.artifacts.put(&folder).await.unwrap();
    let place = installation.store.places().await.unwrap();
    let kept = installation
        .path()
        .join("artifacts/places")
        .join(place.first().unwrap());
    fs::write(kept.join("below/short.txt"), "test").unwrap();
    let to = installation.path().join("to");
    let damaged = installation.artifacts.get(&sha256, &to.join("it")).await;
    let is_damage = matches!(&damaged, Err(ArtifactStoreError::Damaged { file, .. }) if file == "below/short.txt");
    assert!(is_damage, "{damaged:?}");
    assert_eq!(fs::read_dir(&to).unwrap().count(), 0);
}

#[tokio::test]
async fn what_nobody_holds_is_swept_and_what_somebody_holds_is_not() {
    for database in databases() {
        let installation = Installation::new(database).await;
        let path = installation.path();
        let mut put = Vec::new();
        for name in ["held", "left"] {
            let folder = path.join(name);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("file"), name).unwrap();
            put.push(installation.artifacts.put(&folder).await.unwrap());
        }
        let file = StoredFile {
            id: "file-1".into(),
            name: "a.txt".into(),
            bytes: 4,
            documents: 2,
            sha256: String::new(),
            created_at: 0,
        };
        installation.store.add_file(&file, &put[0]).await.unwrap();
        assert_eq!(installation.artifacts.sweep().await.unwrap(), 0);
        // A second, as files' times may be as coarse.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let artifacts = installation.artifacts_kept_for(Duration::ZERO);
        assert_eq!(artifacts.sweep().await.unwrap(), 1);
        artifacts.verify(&put[0]).await.unwrap();
        let left = artifacts.verify(&put[1]).await;
        assert!(matches!(left, Err(ArtifactStoreError::Gone(_))), "{left:?}");

        // What an upload has left that was broken off before it had a record.
        fs::write(path.join("left/file"), "again").unwrap();
        let broken_off = artifacts.put(&path.join("left")).await.unwrap();
        installation
            .store
            .remove_if_unheld(&broken_off)
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(artifacts.sweep().await.unwrap(), 1);
        assert_eq!(artifacts.sweep().await.unwrap(), 0);
        artifacts.verify(&put[0]).await.unwrap();
    }
}

#[tokio::test]
async fn artifacts_are_of_one_installation() {
    for database in databases() {
        let one = Installation::new(database).await;
        // The same place with other jobs, as after a mistake in the settings: nothing is touched.
        let other = Installation::new(database).await;
        let refused = ArtifactStore::of(&one.settings(), &other.store).await;
        assert!(
            matches!(refused, Err(ArtifactStoreError::OfOthers)),
            "{refused:?}"
        );
        ArtifactStore::of(&one.settings(), &one.store)
            .await
            .unwrap();
    }
    let installation = Installation::new(Database::Sqlite).await;
    let folder = installation.path().join("artifacts/mine");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "mine").unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let artifacts = installation.artifacts_kept_for(Duration::ZERO);
    assert_eq!(artifacts.sweep().await.unwrap(), 0);
    assert!(folder.join("file").is_file());
}

#[cfg(unix)]
#[tokio::test]
async fn links_are_followed_to_files() {
    let installation = Installation::new(Database::Sqlite).await;
    let (folder, back) = (
        installation.path().join("folder"),
        installation.path().join("back"),
    );
    fs::create_dir(&folder).unwrap();
    fs::write(installation.path().join("blob"), "weights").unwrap();
    std::os::unix::fs::symlink("../blob", folder.join("model.safetensors")).unwrap();
    std::os::unix::fs::symlink("..", folder.join("up")).unwrap();
    fs::write(folder.join("a name with spaces.md"), "").unwrap();
    let sha256 = installation.artifacts.put(&folder).await.unwrap();
    installation.artifacts.get(&sha256, &back).await.unwrap();
    let names = fs::read_dir(&back)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["model.safetensors"]);
    assert_eq!(
        fs::read(back.join("model.safetensors")).unwrap(),
        b"weights"
    );
}
