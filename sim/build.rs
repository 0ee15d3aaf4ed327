//! The scenarios are built in (`catalog`): a new or changed file is a reason to build again.

fn main() {
    println!("cargo::rerun-if-changed=../scenarios");
}
