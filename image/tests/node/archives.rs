//! Images that are saved to archives and loaded from them.

use super::*;

/// A writer that keeps the bytes for the test.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn saved_images_are_loaded_with_the_same_ids() {
    let node = node().await;
    let (first, first_id) = layer(&[("a", "one"), ("long/".repeat(40).as_str(), ""), ("b", "two")]);
    let (second, second_id) = layer(&[("c", "three"), (".wh.a", "")]);
    let gz = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &first).unwrap();
        encoder.finish().unwrap()
    };
    node.registry.layers("app", &[(gz, first_id), (second, second_id)]);
    let app = node.pull("app:1").await.unwrap();
    let artifact = node.artifact("models", &[("model.bin", "weights")]);
    node.pull("models:1").await.unwrap();
    let kept = Kept::default();
    node.store.save(&[node.name("app:1"), artifact.to_string()], kept.clone()).await.unwrap();
    fs::write(node.path("saved.tar"), &*kept.0.lock().unwrap()).unwrap();
    // GNU tar can read the archive.
    let listed = Command::new("tar").arg("-tf").arg(node.path("saved.tar")).output().unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains("index.json"), "{listed:?}");

    let other = tempfile::tempdir().unwrap();
    let store = open(other.path()).await;
    let loaded = store.load(&node.path("saved.tar")).await.unwrap();
    let ids: Vec<_> = loaded.iter().map(|image| image.id.clone()).collect();
    assert!(ids.contains(&app.id) && ids.contains(&artifact), "{ids:?}");
    let image = store.resolve(&node.name("app:1")).unwrap();
    assert_eq!((&image.layers, &image.repo_tags), (&app.layers, &app.repo_tags));
    assert!(store.resolve(&node.name("models:1")).unwrap().artifact);

    // Changed files are not saved.
    let layer = node.path("image/layers").join(app.layers[0].to_string().replace(':', "-")).join("fs/a");
    fs::write(&layer, "ONE").unwrap();
    let error = node.store.save(&[node.name("app:1")], Kept::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert_eq!(
        node.store.save(&["none".to_owned()], Kept::default()).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_import_folder_is_loaded_and_pinned() {
    let node = node().await;
    node.image("app");
    let app = node.pull("app:1").await.unwrap();
    let kept = Kept::default();
    node.store.save(&[node.name("app:1")], kept.clone()).await.unwrap();
    let archive = kept.0.lock().unwrap().clone();

    let other = tempfile::tempdir().unwrap();
    let store = open(other.path()).await;
    let import = other.path().join("import");
    let run = |store: &ImageStore| {
        let (store, import) = (store.clone(), import.clone());
        tokio::spawn(async move { store.import_from(import).await })
    };
    let importing = run(&store);
    until("the folder is not created", || import.is_dir()).await;
    fs::write(import.join("broken.tar"), "no archive").unwrap();
    fs::write(import.join(".app.tar.part"), &archive).unwrap();
    fs::rename(import.join(".app.tar.part"), import.join("app.tar")).unwrap();
    let image = |store: &ImageStore| store.resolve(app.id.to_string().as_str());
    until("the archive is not imported", || image(&store).is_some_and(|image| image.pinned)).await;
    importing.abort();

    // A later daemon does not read the archive again. An image that was removed is imported again.
    drop(store);
    let store = open(other.path()).await;
    assert!(image(&store).unwrap().pinned);
    store.remove(&app.id.to_string()).await.unwrap();
    let importing = run(&store);
    until("the image is not imported again", || image(&store).is_some_and(|image| image.pinned)).await;
    fs::remove_file(import.join("app.tar")).unwrap();
    until("the image is still pinned", || image(&store).is_some_and(|image| !image.pinned)).await;
    importing.abort();
}
