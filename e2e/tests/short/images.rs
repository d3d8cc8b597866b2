//! The images that tests use are those that the Dockerfiles describe, and what is in them runs.

use std::{fs, path::Path, process::Command};

use hauberk_e2e::Images;
use serde_json::Value;

/// What the last stage of a Dockerfile says.
fn last_stage(dockerfile: &str) -> Vec<&str> {
    let (_, last) = dockerfile.rsplit_once("\nFROM ").expect("two stages");
    last.lines().collect()
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    let text = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat();
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

/// The image's configuration, and its one layer unpacked into `root`.
fn unpack(archive: &Path, root: &Path) -> Value {
    let file = |name: &str| output(Command::new("tar").arg("-xOf").arg(archive).arg(name));
    let manifest: Value = serde_json::from_str(&file("manifest.json")).expect("JSON");
    let config = serde_json::from_str(&file(manifest[0]["Config"].as_str().expect("a name"))).expect("JSON");
    let outer = root.with_extension("layer");
    fs::create_dir_all(&outer).expect("a directory");
    output(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&outer));
    fs::create_dir_all(root).expect("a directory");
    let layer = outer.join(manifest[0]["Layers"][0].as_str().expect("a name"));
    output(Command::new("tar").arg("-xf").arg(layer).arg("-C").arg(root));
    config
}

#[test]
fn images_made_without_a_registry_are_what_their_dockerfiles_say_and_run() {
    let images = Images::build().expect("the images");
    let scratch = tempfile::tempdir().expect("a directory");
    for (image, programs, from_debian) in [
        (
            "proxy",
            vec!["hauberk-proxy", "nft", "ip", "iptables-nft-restore", "iptables-legacy-restore", "ip6tables-nft-save"],
            vec![("/usr/sbin/nft", "nftables"), ("/bin/ip", "iproute2"), ("/usr/sbin/xtables-nft-multi", "iptables")],
        ),
        ("controller", vec!["hauberk-identity", "hauberk-destination", "hauberk-webhook"], vec![]),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../deploy/{image}.Dockerfile"));
        let dockerfile = fs::read_to_string(path).expect("a Dockerfile");
        let root = scratch.path().join(image);
        let config = &unpack(&images.archive(image), &root)["config"];
        let mut said = vec!["scratch".to_owned(), "COPY --from=build /rootfs /".to_owned()];
        said.push(format!("ENV {}", config["Env"][0].as_str().expect("a path")));
        said.push(format!("USER {}", config["User"].as_str().expect("a user")));
        if let Some(entrypoint) = config.get("Entrypoint") {
            said.push(format!("ENTRYPOINT {entrypoint}"));
        }
        assert_eq!(last_stage(&dockerfile), said, "{image}");
        assert_eq!(config["User"], "2102:2102", "nobody's root");
        assert!(dockerfile.contains(&format!("RUN deploy/rootfs {image} target/release /rootfs\n")), "{dockerfile}");
        for (file, package) in from_debian {
            let owner = output(Command::new("dpkg-query").args(["--search", file]));
            assert!(owner.starts_with(&format!("{package}:")), "{file}: {owner}");
            assert!(dockerfile.contains(&format!(" {package} ")), "{image}: {file} needs {package}");
        }
        for program in programs {
            let version = if program == "ip" { "-V" } else { "--version" };
            let mut run = Command::new("chroot");
            output(run.arg(&root).arg(program).arg(version).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"));
        }
        for shell in ["sh", "bash", "busybox"] {
            assert!(!root.join("usr/bin").join(shell).exists(), "{image} needs no shell");
        }
    }
}
