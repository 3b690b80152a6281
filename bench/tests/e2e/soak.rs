//! `forebay-bench soak` in a short form, with the built binaries.

use std::time::Duration;

use forebay_bench::soak::{SoakOptions, run};

use crate::binaries::forebayd;

#[test]
fn a_short_soak_leaves_nothing_behind() {
    let slow = std::env::var_os("FOREBAY_SLOW_TESTS").is_some_and(|value| value == "1");
    // Beside other tests there are not CPUs enough for more clients.
    let (seconds, clients) = if slow { (120, 50) } else { (15, 16) };
    let table = run(&SoakOptions {
        length: Duration::from_secs(seconds),
        seed: 1,
        clients,
        daemon: Some(forebayd().to_owned()),
        program: Some(env!("CARGO_BIN_EXE_forebay-bench").into()),
    });
    let table = table.expect("nothing of the soak itself fails");
    println!("{}", table.text());
    assert!(table.holds(), "{}", table.text());
}
