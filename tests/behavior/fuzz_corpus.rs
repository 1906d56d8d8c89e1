//! Every file of the fuzzers' corpus, replayed through the function that its fuzzer calls: what was found stays fixed.

use std::path::Path;

#[test]
fn every_corpus_file_passes_its_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in pgsidecar::fuzzing::TARGETS {
        let mut files = 0;
        for entry in std::fs::read_dir(corpus.join(name)).unwrap_or_else(|error| panic!("fuzz/corpus/{name}: {error}"))
        {
            let path = entry.unwrap().path();
            let data = std::fs::read(&path).unwrap();
            assert!(
                std::panic::catch_unwind(|| target(&data)).is_ok(),
                "{} fails its target",
                path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(&path).display()
            );
            files += 1;
        }
        assert!(files > 0, "the corpus of {name} is empty");
    }
}
