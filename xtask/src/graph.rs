//! The crate graph of the design, as data: any edge that is not listed fails.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::workspace::Workspace;

/// Each crate of the workspace, and the workspace crates it may depend on.
const ALLOWED: &[(&str, &[&str])] = &[
    ("container", &["container-api", "container-archive"]),
    ("container-api", &[]),
    ("container-archive", &[]),
    ("container-apiserver", &["container-api"]),
    ("container-fileserver", &[]),
    ("container-images", &["container-api", "container-rootfs"]),
    ("container-jailer", &[]),
    ("container-network", &["container-api"]),
    ("container-probe", &[]),
    ("container-rootfs", &[]),
    ("container-runtime-linux", &["container-api", "vminitd-protocol"]),
    ("container-trim", &[]),
    ("vminitd", &["container-archive", "vminitd-protocol"]),
    ("vminitd-protocol", &[]),
    // Not part of the product. xtask renders the man pages from the CLI's parser.
    ("e2e", &[]),
    (
        "replay",
        &[
            "container",
            "container-api",
            "container-apiserver",
            "container-archive",
            "container-images",
            "container-network",
            "container-rootfs",
            "container-runtime-linux",
            "vminitd-protocol",
        ],
    ),
    ("xtask", &["container", "e2e"]),
];

/// Fails with every edge that the table does not have.
pub fn check(workspace: &Workspace, (): ()) -> Result<()> {
    let wrong = violations(&workspace.metadata);
    if !wrong.is_empty() {
        bail!("the crate graph differs from the design:\n  {}", wrong.join("\n  "));
    }
    println!("the crate graph is the design's");
    Ok(())
}

fn violations(metadata: &Value) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let members: BTreeSet<&str> =
        packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut wrong = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(may) = allowed.get(name) else {
            wrong.push(format!("{name} is not in the table"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let on = dependency["name"].as_str().unwrap_or_default();
            if members.contains(on) && !may.contains(&on) {
                wrong.push(format!("{name} depends on {on}"));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn this_workspace_has_the_graph_of_the_design() {
        let workspace = Workspace::find().unwrap();
        assert_eq!(violations(&workspace.metadata), Vec::<String>::new());
    }

    #[test]
    fn an_edge_that_is_not_listed_is_found() {
        let metadata = json!({"packages": [
            {"name": "container-api", "dependencies": []},
            {"name": "container-rootfs", "dependencies": [{"name": "container-api"}]},
            {"name": "surprise", "dependencies": []},
        ]});
        assert_eq!(
            violations(&metadata),
            ["container-rootfs depends on container-api", "surprise is not in the table"]
        );
    }
}
