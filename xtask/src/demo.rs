//! `make demo`: from nothing to a real program in its own virtual machine, each step
//! printed. A second call finds the image, the kernel and the binaries in place.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::stamp::file_digest;
use crate::workspace::{Workspace, make_dir, output, run, step};
use crate::{build, debian};

/// Runs the demo with an app root of its own, and stops its service at the end.
pub fn run_demo(workspace: &Workspace, (): ()) -> Result<()> {
    build::all(workspace, ())?;
    let image = debian::image(workspace)?;
    let demo = Demo {
        container: workspace.release().join(build::COMMAND),
        app_root: workspace.target.join("demo/root"),
    };
    make_dir(&demo.app_root)?;
    let result = demo.tour(&image);
    step("stopping the demo's service");
    let stopped = demo.show(&["system", "stop"]);
    result.and(stopped)
}

struct Demo {
    container: PathBuf,
    app_root: PathBuf,
}

impl Demo {
    fn tour(&self, image: &std::path::Path) -> Result<()> {
        let path = image.to_string_lossy();
        step("starting the service");
        self.show(&["system", "start"])?;
        if !output(&mut self.command(&["image", "list", "--quiet"]))?.contains("debian-python") {
            step("loading the image");
            self.show(&["image", "load", "--input", &path])?;
        }
        self.show(&["image", "list"])?;

        step("the host's kernel, then the one of the container's own virtual machine");
        println!("$ uname -a");
        run(Command::new("uname").arg("-a"))?;
        self.show(&["run", "--rm", debian::NAME, "uname", "-a"])?;

        step("a python program, which reads a file from standard input");
        self.pass_a_file(image)?;

        step("what the service says of itself");
        self.show(&["system", "status"])
    }

    /// Sends the image's archive through the program's input and compares digests.
    fn pass_a_file(&self, file: &std::path::Path) -> Result<()> {
        let file = file.with_file_name("python.tar");
        println!("$ container run --rm -i {} < {}", debian::NAME, file.display());
        let mut command = self.command(&["run", "--rm", "-i", debian::NAME]);
        command.stdin(Stdio::from(std::fs::File::open(&file)?)).stderr(Stdio::inherit());
        let said = String::from_utf8_lossy(&command.output()?.stdout).into_owned();
        print!("{said}");
        let digest = file_digest(&file)?;
        println!("$ sha256sum {}\n{digest}", file.display());
        if !said.contains(&digest) {
            bail!("the digest inside the container differs from the host's");
        }
        println!("the digests agree");
        Ok(())
    }

    fn show(&self, args: &[&str]) -> Result<()> {
        println!("$ container {}", args.join(" "));
        run(&mut self.command(args))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.container);
        command.args(args).env("CONTAINER_APP_ROOT", &self.app_root);
        command
    }
}
