//! Makes the guest's kernel and initial RAM disk by the recipe in `deploy/guest`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};

use crate::paths::{self, find_program};
use crate::progress::Progress;
use crate::setup::apt_get;

/// Goes up when this file makes another image from the same recipe.
const RECIPE_VERSION: u32 = 1;

/// Packages that bring a kernel for guests, the first one that the distribution knows is taken.
const KERNEL_PACKAGES: &[&str] = &["linux-image-cloud-amd64", "linux-image-virtual"];

/// A bootable guest.
#[derive(Clone, Debug)]
pub struct Image {
    /// The kernel, for `-kernel`.
    pub kernel: PathBuf,
    /// The initial RAM disk, for `-initrd`.
    pub initrd: PathBuf,
}

/// The guest's image, made when it is not there or its recipe changed.
pub fn make(progress: &Progress) -> anyhow::Result<Image> {
    let dir = paths::target().join("guest");
    let recipe = Recipe::read(&paths::root().join("deploy/guest"))?;
    let image = Image { kernel: dir.join("vmlinuz"), initrd: dir.join("initrd") };
    let stamp = dir.join("recipe");
    let made = fs::read_to_string(&stamp).is_ok_and(|text| text == recipe.text());
    if made && image.kernel.is_file() && image.initrd.is_file() {
        return Ok(image);
    }
    fs::create_dir_all(&dir)?;
    let _ = fs::remove_file(&stamp);
    // Two runs at once (tests in one terminal, the demo in another) must not see half an image: rename at the end.
    let work = tempfile::Builder::new().prefix("making-").tempdir_in(&dir)?;
    progress.note("downloading the guest's kernel");
    let unpacked = work.path().join("packages");
    download(&unpacked)?;
    progress.note("packing the guest's RAM disk");
    let root = work.path().join("root");
    let (release, kernel) = find_kernel(&unpacked)?;
    fill_root(&root, &unpacked, &release, &recipe)?;
    pack(&root, &work.path().join("initrd"))?;
    fs::rename(kernel, &image.kernel)?;
    fs::rename(work.path().join("initrd"), &image.initrd)?;
    fs::write(&stamp, recipe.text())?;
    Ok(image)
}

struct Recipe {
    init: String,
    modules: Vec<String>,
    programs: Vec<String>,
}

impl Recipe {
    fn read(dir: &Path) -> anyhow::Result<Recipe> {
        let read = |name: &str| {
            fs::read_to_string(dir.join(name)).with_context(|| format!("reading {name} of {}", dir.display()))
        };
        let lines = |text: String| text.lines().map(str::to_owned).filter(|line| !line.is_empty()).collect();
        Ok(Recipe {
            init: read("init")?,
            modules: lines(read("modules")?),
            programs: lines(read("programs")?),
        })
    }

    /// Everything that makes a difference, to compare with what the present image was made of.
    fn text(&self) -> String {
        format!("{RECIPE_VERSION}\n{}\n{}\n{}", self.modules.join(" "), self.programs.join(" "), self.init)
    }
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("running {:?}", command.get_program()))?;
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    ensure!(
        output.status.success(),
        "{} {}: {}",
        command.get_program().to_string_lossy(),
        words.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Downloads and unpacks kernel and busybox into `unpacked`.
fn download(unpacked: &Path) -> anyhow::Result<()> {
    ensure!(
        find_program("apt-get").is_some(),
        "the guest's kernel comes from a Debian or Ubuntu package, and this machine has no apt-get: make {0}/vmlinuz and \
         {0}/initrd on one that has it, and copy the directory",
        paths::target().join("guest").display()
    );
    let mut packages = kernel_packages()?;
    if packages.is_empty() {
        // A fresh machine has no package lists yet.
        run(apt_get().arg("update"))?;
        packages = kernel_packages()?;
    }
    ensure!(
        !packages.is_empty(),
        "none of the packages {} is in the package lists",
        KERNEL_PACKAGES.join(", ")
    );
    packages.insert("busybox-static".into());
    fs::create_dir_all(unpacked)?;
    let attempt = run(apt_get().current_dir(unpacked).arg("download").args(&packages));
    if attempt.is_err() {
        // The lists may be older than the archive.
        run(apt_get().arg("update"))?;
        run(apt_get().current_dir(unpacked).arg("download").args(&packages))?;
    }
    for entry in fs::read_dir(unpacked)? {
        let package = entry?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(unpacked))?;
        }
    }
    Ok(())
}

/// The packages with kernel and modules: what the first known meta package depends on, and so on.
fn kernel_packages() -> anyhow::Result<BTreeSet<String>> {
    for meta in KERNEL_PACKAGES {
        let mut found = BTreeSet::new();
        let mut ask = vec![(*meta).to_owned()];
        while let Some(name) = ask.pop() {
            let Ok(text) = run(Command::new("apt-cache").args(["depends", "--important", &name])) else {
                continue;
            };
            let depends = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
            let kernel =
                depends.filter(|name| name.starts_with("linux-image-") || name.starts_with("linux-modules-"));
            for name in kernel {
                if found.insert(name.to_owned()) {
                    ask.push(name.to_owned());
                }
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(BTreeSet::new())
}

/// Release and file of the unpacked kernel.
fn find_kernel(unpacked: &Path) -> anyhow::Result<(String, PathBuf)> {
    for entry in fs::read_dir(unpacked.join("boot")).context("the kernel package has no boot directory")? {
        let file = entry?.path();
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(release) = name.strip_prefix("vmlinuz-") {
            return Ok((release.to_owned(), file));
        }
    }
    bail!("the kernel package has no kernel")
}

fn modules_dir(unpacked: &Path, release: &str) -> PathBuf {
    ["lib/modules", "usr/lib/modules"]
        .iter()
        .map(|dir| unpacked.join(dir).join(release))
        .find(|dir| dir.is_dir())
        .unwrap_or_else(|| unpacked.join("lib/modules").join(release))
}

fn fill_root(root: &Path, unpacked: &Path, release: &str, recipe: &Recipe) -> anyhow::Result<()> {
    for dir in ["bin", "dev", "etc", "modules", "mnt", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::write(root.join("init"), &recipe.init)?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    let busybox =
        ["bin/busybox", "usr/bin/busybox"].iter().map(|name| unpacked.join(name)).find(|file| file.is_file());
    let busybox = busybox.context("busybox-static brought no busybox")?;
    fs::copy(&busybox, root.join("bin/busybox"))?;
    for applet in run(Command::new(&busybox).arg("--list"))?.lines().filter(|applet| *applet != "busybox") {
        symlink("/bin/busybox", root.join("bin").join(applet))?;
    }
    for name in &recipe.programs {
        let program = find_program(name).with_context(|| format!("{name} is not installed"))?;
        let place = root.join("bin").join(name);
        let _ = fs::remove_file(&place);
        fs::copy(&program, place)?;
        copy_libraries(&program, root)?;
    }
    let modules = modules_dir(unpacked, release);
    // depmod wants the tree below lib/modules of its base directory.
    let base = modules.ancestors().nth(3).context("the modules' directory is too shallow")?;
    run(Command::new(find_program("depmod").context("depmod is not installed")?)
        .arg("-b")
        .arg(base)
        .arg(release))?;
    let order =
        load_order(&fs::read_to_string(modules.join("modules.dep"))?, &recipe.modules, &builtin(&modules)?)?;
    let mut names = String::new();
    for path in order {
        let name = module_name(&path);
        let file = fs::File::create(root.join("modules").join(format!("{name}.ko")))?;
        unpack_module(&modules.join(&path), file)?;
        names += &format!("{name}.ko\n");
    }
    fs::write(root.join("modules/order"), names)?;
    Ok(())
}

/// Copies what the dynamic linker would load for `program`, each to the path where it looks for it.
fn copy_libraries(program: &Path, root: &Path) -> anyhow::Result<()> {
    for word in run(Command::new("ldd").arg(program))?.split_whitespace().filter(|word| word.starts_with('/'))
    {
        let place = root.join(word.trim_start_matches('/'));
        fs::create_dir_all(place.parent().expect("a library has a directory"))?;
        fs::copy(word, place)?;
    }
    Ok(())
}

fn builtin(modules: &Path) -> anyhow::Result<BTreeSet<String>> {
    let text = fs::read_to_string(modules.join("modules.builtin"))
        .context("the kernel package has no modules.builtin")?;
    Ok(text.lines().map(module_name).collect())
}

/// `kernel/drivers/block/virtio_blk.ko.xz` -> `virtio_blk`. The kernel takes `-` and `_` for the same.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// Paths of the modules `wanted` and of all they need, each after what it needs, from the lines of modules.dep.
fn load_order(dep: &str, wanted: &[String], builtin: &BTreeSet<String>) -> anyhow::Result<Vec<String>> {
    let lines = dep.lines().filter_map(|line| line.split_once(':'));
    let needs: BTreeMap<_, _> = lines.map(|(path, needs)| (module_name(path), (path, needs))).collect();
    let mut order: Vec<String> = Vec::new();
    for name in wanted.iter().filter(|name| !builtin.contains(*name)) {
        let (path, needs) = needs.get(name).with_context(|| format!("the kernel has no module {name}"))?;
        // modules.dep lists everything that is needed, directly or not, what is loaded first at the end.
        for path in needs.split_whitespace().rev().chain([*path]) {
            if !order.iter().any(|there| there == path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

fn unpack_module(module: &Path, mut to: fs::File) -> anyhow::Result<()> {
    let tool = match module.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return Ok(to.write_all(&fs::read(module)?)?),
    };
    let status = Command::new(tool)
        .arg("-dc")
        .arg(module)
        .stdout(to)
        .status()
        .with_context(|| format!("running {tool}"))?;
    ensure!(status.success(), "{tool} cannot unpack {}", module.display());
    Ok(())
}

fn pack(root: &Path, initrd: &Path) -> anyhow::Result<()> {
    let mut names = Vec::new();
    list(root, root, &mut names)?;
    names.sort();
    let mut cpio = Command::new("cpio")
        .args(["--create", "--format=newc", "--reproducible", "--owner=0:0", "--null", "--quiet"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(fs::File::create(initrd)?)
        .spawn()
        .context("running cpio")?;
    cpio.stdin.take().expect("a pipe was asked for").write_all(names.join("\0").as_bytes())?;
    ensure!(cpio.wait()?.success(), "cpio failed");
    Ok(())
}

fn list(root: &Path, dir: &Path, names: &mut Vec<String>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let name = path.strip_prefix(root).expect("below the root");
        names.push(name.to_str().context("file names are UTF-8")?.to_owned());
        if entry.file_type()?.is_dir() {
            list(root, &path, names)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let dep = "kernel/a/virtio.ko: kernel/a/virtio_ring.ko\n\
                   kernel/a/virtio_ring.ko:\n\
                   kernel/b/virtio-blk.ko.xz: kernel/a/virtio.ko kernel/a/virtio_ring.ko\n\
                   kernel/b/virtio_net.ko: kernel/c/net_failover.ko kernel/c/failover.ko kernel/a/virtio.ko kernel/a/virtio_ring.ko\n";
        let wanted = ["virtio_blk", "ext4", "virtio_net"].map(str::to_owned);
        let order = load_order(dep, &wanted, &BTreeSet::from(["ext4".to_owned()])).unwrap();
        let names: Vec<_> = order.iter().map(|path| module_name(path)).collect();
        assert_eq!(names, ["virtio_ring", "virtio", "virtio_blk", "failover", "net_failover", "virtio_net"]);
        let error = load_order(dep, &["ext4".to_owned()], &BTreeSet::new()).unwrap_err();
        assert_eq!(error.to_string(), "the kernel has no module ext4");
    }
}
