//! The embedded default: with no data at all, `alexnet train` draws its pictures and learns them. (That linear classifiers
//! do not is a test of the library, `data_drawn`.)

mod common;

use common::run;

#[test]
fn the_drawn_pictures_are_learned() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let trained = run(&["train".as_ref(), "--json".as_ref(), "--out".as_ref(), out.as_os_str()]);
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    let result = trained.json();
    assert!(result["classes"].as_u64().unwrap() >= 10, "{result}");
    assert!(result["val_top1_error"].as_f64().unwrap() <= 0.10, "{result}");
}
