//! Prints `docs/annotations.md`.

fn main() {
    print!("{}", hauberk_webhook::inject::documents::annotations());
}
