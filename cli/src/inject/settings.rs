//! What labels and annotations set, for `--help`: from the table that `docs/annotations.md` is made from. Pure.

use std::fmt::Write;

use hauberk_webhook::inject::SETTINGS;

/// One paragraph for each.
pub(crate) fn help() -> String {
    let mut text = "Labels and annotations (hauberk.dev/…), in full in docs/annotations.md:\n".to_owned();
    for setting in SETTINGS {
        let _ = writeln!(text, "  {} ({}; takes effect: {})", setting.name, setting.places(), setting.effect);
        let _ = writeln!(text, "      {} Valid: {}. Default: {}.", setting.says, setting.valid, setting.default);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_listed() {
        let text = help();
        for setting in SETTINGS {
            assert!(
                text.contains(&format!("  {} (", setting.name)) && text.contains(setting.valid),
                "{}",
                setting.name
            );
        }
    }
}
