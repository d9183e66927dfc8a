//! Tests that mount for real, as an unprivileged user.
//!
//! # Theory of operation
//! Each case runs in a process of its own, in a user and a mount namespace of
//! its own: the test binary starts itself again through setpriv(1) (when it is
//! root: as the user `coracle-test`) and unshare(1). All layers are on a tmpfs
//! that vanishes with the namespace. Where that is not possible every case is
//! skipped, says so, and is counted. A few compare with what the kernel's overlay
//! does for real root only; they run when the tests do, in a mount namespace.
//!
//! Requests come through io_uring only where the machine's root has switched that on, for
//! all mounts to come. As root the tests do so for as long as those cases run, one after
//! the other as all do: other servers must ask for it, and ours must work with it.

#![allow(clippy::unwrap_used, reason = "a test: it fails by panicking")]

mod conformance;
mod corners;
mod crash;
mod lab;
mod links;
mod metacopy;
mod model;
mod passthrough;
mod promises;
mod quota;
mod redirect;
mod rings;
mod step;
mod together;
mod writeback;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

type Case = (&'static str, fn());

const CASES: &[Case] = &[
    ("corners::copy_up_keeps_everything", corners::copy_up_keeps_everything),
    ("corners::removal_copies_nothing", corners::removal_copies_nothing),
    ("links::hard_links_are_one_inode", links::hard_links_are_one_inode),
    ("links::links_without_attributes", links::links_without_attributes),
    ("links::what_is_remembered_may_be_anything", links::remembered_may_be_anything),
    (
        "links::a_note_that_cannot_be_made_leaves_nothing",
        links::a_note_that_cannot_be_made_leaves_nothing,
    ),
    ("corners::a_copy_of_what_nobody_may_write", corners::a_copy_of_what_nobody_may_write),
    ("corners::set_gid_directories_pass_on_their_group", corners::set_gid_directories),
    ("corners::open_files_outlive_their_names", corners::open_files_outlive_their_names),
    ("corners::whiteouts_and_opaque_marks_are_read", corners::whiteouts_are_read),
    ("corners::without_upper_nothing_changes", corners::without_upper_nothing_changes),
    ("corners::owners_are_mapped_and_squashed", corners::owners_are_mapped),
    ("corners::attributes_hold_owner_and_mode", corners::attributes_hold_owner_and_mode),
    ("corners::times_of_any_kind_are_kept", corners::times_of_any_kind_are_kept),
    ("corners::only_public_lower_files_are_seen", corners::only_public_lower_files_are_seen),
    ("corners::paths_may_hold_separators", corners::paths_may_hold_separators),
    ("corners::bad_requests_are_refused_in_one_line", corners::bad_requests_are_refused),
    ("corners::readiness_and_end", corners::readiness_and_end),
    ("corners::reading_a_directory_while_it_changes", corners::reading_while_changing),
    ("promises::nameless_files_can_be_given_a_name", promises::nameless_files),
    ("promises::default_acls_are_passed_on", promises::default_acls),
    ("promises::privileged_attributes_hold_owner_and_mode", promises::privileged_attributes),
    ("promises::five_hundred_lowers", promises::five_hundred_lowers),
    ("promises::set_id_bits_go_with_a_change", promises::set_id_bits_go_with_a_change),
    ("promises::shared_mappings_reach_the_upper", promises::shared_mappings),
    (
        "promises::what_cannot_be_copied_fails_when_written",
        promises::what_cannot_be_copied_fails_when_written,
    ),
    ("promises::started_in_every_way", promises::started_in_every_way),
    ("promises::searched_and_not_listed", promises::searched_and_not_listed),
    ("promises::remounted_read_only_and_back", promises::remounted),
    ("promises::small_writes_are_gathered_when_asked_for", writeback::small_writes_are_gathered),
    ("promises::counters_on_request", promises::counters_on_request),
    ("promises::outlives_its_terminal", promises::outlives_its_terminal),
    ("together::many_at_once", together::many_at_once),
    ("together::renames_leave_nothing_behind", together::renames_leave_nothing),
    ("together::few_descriptors_are_enough", together::few_descriptors),
    ("promises::layers_cannot_be_left", promises::layers_cannot_be_left),
    ("conformance::pjdfstest", conformance::pjdfstest),
    ("conformance::fsx", conformance::fsx),
    ("conformance::file_operations_as_on_a_plain_file", conformance::file_operations),
    ("conformance::locks_and_syncing", conformance::locks_and_syncing),
    ("crash::at_every_step", crash::at_every_step),
    ("quota::space_is_bounded", quota::space_is_bounded),
    ("quota::mappings_are_bounded", quota::mappings_are_bounded),
    ("quota::bounded_for_many_at_once", quota::bounded_for_many_at_once),
    ("passthrough::refused_without_privilege", passthrough::refused_without_privilege),
    ("redirect::renamed_directories", redirect::renamed_directories),
    ("redirect::what_is_not_followed", redirect::what_is_not_followed),
    ("model::random_operations_match_the_kernel", model::random_operations),
    ("model::random_operations_match_a_plain_directory", model::plain_directory),
];

/// Cases without the capabilities of their user namespace's root, as if there were none; but
/// for the one that mounts.
const BARRED: &[Case] = &[
    ("corners::opened_before_its_mode_forbade_it", corners::opened_before_its_mode_forbade_it),
    ("corners::directories_that_are_not_listed", corners::directories_that_are_not_listed),
    ("together::modes_are_never_seen_opened_up", together::modes_are_never_seen_opened_up),
    ("crash::at_every_step_past_modes", crash::at_every_step_past_modes),
    (
        "model::random_operations_match_a_plain_directory_by_its_modes",
        model::plain_directory_by_its_modes,
    ),
];

/// Cases of mounts whose kernel keeps what is written: its own, and those of others whose
/// mounts have `writeback` besides. (Those that differ are those that look for holes, or
/// for ENOSPC with the write.)
const WRITEBACK: &[Case] = &[
    ("writeback::times_are_the_kernels", writeback::times_are_the_kernels),
    ("writeback::removal_copies_nothing", writeback::removal_copies_nothing),
    (
        "writeback::what_is_not_written_yet_is_no_hole",
        writeback::what_is_not_written_yet_is_no_hole,
    ),
    ("writeback::a_full_upper_is_told", writeback::a_full_upper_is_told),
    ("writeback::what_reaches_the_upper_when", writeback::what_reaches_the_upper_when),
    ("writeback::every_end_writes_out", writeback::every_end_writes_out),
    ("writeback::copy_up_keeps_everything", corners::copy_up_keeps_everything),
    ("writeback::hard_links_are_one_inode", links::hard_links_are_one_inode),
    ("writeback::open_files_outlive_their_names", corners::open_files_outlive_their_names),
    ("writeback::attributes_hold_owner_and_mode", corners::attributes_hold_owner_and_mode),
    ("writeback::times_of_any_kind_are_kept", corners::times_of_any_kind_are_kept),
    ("writeback::nameless_files_can_be_given_a_name", promises::nameless_files),
    ("writeback::set_id_bits_go_with_a_change", promises::set_id_bits_go_with_a_change),
    ("writeback::shared_mappings_reach_the_upper", promises::shared_mappings),
    ("writeback::remounted_read_only_and_back", promises::remounted),
    ("writeback::locks_and_syncing", conformance::locks_and_syncing),
    ("writeback::pjdfstest", conformance::pjdfstest),
    ("writeback::fsx", conformance::fsx),
    ("writeback::many_at_once", together::many_at_once),
    ("writeback::few_descriptors_are_enough", together::few_descriptors),
    ("writeback::at_every_step", crash::at_every_step),
    ("writeback::renamed_directories", redirect::renamed_directories),
    ("writeback::random_operations_match_the_kernel", model::random_operations),
    ("writeback::random_operations_match_a_plain_directory", model::plain_directory),
];

/// Cases that take the machine's root.
const PRIVILEGED: &[Case] = &[
    ("corners::devices_are_copied_up", corners::devices_are_copied_up),
    ("quota::a_copy_that_does_not_end_counts", quota::a_copy_that_does_not_end_counts),
    ("redirect::on_disk_as_the_kernels", redirect::on_disk_as_the_kernels),
    ("metacopy::files_without_data", metacopy::files_without_data),
    ("metacopy::data_that_is_not_there", metacopy::data_that_is_not_there),
    ("metacopy::data_outlives_the_name", metacopy::data_outlives_the_name),
    ("metacopy::data_below_what_hides_it", metacopy::data_below_what_hides_it),
    ("passthrough::the_kernel_reads_by_itself", passthrough::the_kernel_reads_by_itself),
    ("passthrough::nothing_is_written", passthrough::nothing_is_written),
    ("passthrough::opened_by_many_at_once", passthrough::opened_by_many_at_once),
    ("passthrough::above_and_below_other_stacks", passthrough::above_and_below_other_stacks),
    ("passthrough::readers_outlive_the_server", passthrough::readers_outlive_the_server),
    ("model::random_renames_match_the_kernel", model::redirects),
];

/// Cases whose requests come through io_uring: its own, and those of others that ask for
/// the most.
const RINGS: &[Case] = &[
    ("rings::requests_come_through_rings", rings::requests_come_through_rings),
    ("rings::the_device_serves_without_rings", rings::the_device_serves_without_rings),
    (
        "rings::the_device_serves_where_rings_are_refused",
        rings::the_device_serves_where_rings_are_refused,
    ),
    ("rings::every_end_of_a_mount", rings::every_end_of_a_mount),
    ("rings::copy_up_keeps_everything", corners::copy_up_keeps_everything),
    ("rings::reading_a_directory_while_it_changes", corners::reading_while_changing),
    ("rings::set_id_bits_go_with_a_change", promises::set_id_bits_go_with_a_change),
    ("rings::shared_mappings_reach_the_upper", promises::shared_mappings),
    ("rings::remounted_read_only_and_back", promises::remounted),
    ("rings::file_operations_as_on_a_plain_file", conformance::file_operations),
    ("rings::locks_and_syncing", conformance::locks_and_syncing),
    ("rings::many_at_once", together::many_at_once),
    ("rings::renames_leave_nothing_behind", together::renames_leave_nothing),
    ("rings::at_every_step", crash::at_every_step),
    ("rings::random_operations_match_the_kernel", model::random_operations),
    ("rings::writeback::times_are_the_kernels", writeback::times_are_the_kernels),
    ("rings::writeback::a_full_upper_is_told", writeback::a_full_upper_is_told),
    ("rings::writeback::what_reaches_the_upper_when", writeback::what_reaches_the_upper_when),
    ("rings::writeback::every_end_writes_out", writeback::every_end_writes_out),
    ("rings::writeback::many_at_once", together::many_at_once),
];

fn cases() -> impl Iterator<Item = &'static Case> {
    CASES.iter().chain(WRITEBACK).chain(BARRED).chain(PRIVILEGED).chain(RINGS)
}

/// FUSE over io_uring, switched on; as before on drop.
struct RingsOn(String);

impl RingsOn {
    const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

    /// Or why it cannot be had.
    fn new() -> Result<Self, String> {
        let before = std::fs::read_to_string(Self::SWITCH)
            .map_err(|e| format!("the kernel has no FUSE over io_uring ({}: {e})", Self::SWITCH))?;
        if before.trim() != "Y" {
            std::fs::write(Self::SWITCH, "Y").map_err(|e| {
                format!("FUSE over io_uring is switched off ({}: {e})", Self::SWITCH)
            })?;
        }
        Ok(Self(before))
    }
}

impl Drop for RingsOn {
    fn drop(&mut self) {
        if self.0.trim() != "Y" {
            std::fs::write(Self::SWITCH, &self.0).expect("it could be switched on");
        }
    }
}

/// Names the case in a process that has its namespaces.
const INSIDE: &str = "OVERLAYFS_FUSE_TEST_CASE";

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(INSIDE) {
        let case = cases().find(|c| c.0 == name).expect("the parent names a case");
        lab::enter();
        let mut besides = Vec::new();
        besides.extend(name.contains("writeback::").then_some("writeback"));
        besides.extend(name.starts_with("rings::").then_some("uring=on"));
        lab::besides(besides.join(","));
        (case.1)();
        return ExitCode::SUCCESS;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|a| a == "--list") {
        if !args.iter().any(|a| a == "--ignored") {
            cases().for_each(|c| println!("{}: test", c.0));
        }
        return ExitCode::SUCCESS;
    }
    let exact = args.iter().any(|a| a == "--exact");
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|f| if exact { name == f.as_str() } else { name.contains(*f) })
    };
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let place = prepare();
    let root = nix::unistd::geteuid().is_root();
    for (name, _) in cases().filter(|c| wanted(c.0)) {
        let privileged = PRIVILEGED.iter().any(|c| c.0 == *name);
        let rings = RINGS.iter().any(|c| c.0 == *name).then(RingsOn::new).transpose();
        match place.as_ref().and_then(|place| rings.as_ref().map(|_| place)) {
            _ if privileged && !root => {
                println!("test {name} ... SKIPPED: it takes root");
                skipped += 1;
            }
            Err(reason) => {
                println!("test {name} ... SKIPPED: {reason}");
                skipped += 1;
            }
            Ok(place) => match place.run(name, privileged, BARRED.iter().any(|c| c.0 == *name)) {
                Some(0) => {
                    println!("test {name} ... ok");
                    passed += 1;
                }
                Some(lab::SKIPPED) => {
                    println!("test {name} ... SKIPPED");
                    skipped += 1;
                }
                _ => {
                    println!("test {name} ... FAILED");
                    failed += 1;
                }
            },
        }
    }
    println!("\ntest result: {passed} passed; {failed} failed; {skipped} skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How a case is started.
struct Place {
    /// World-readable copies of this binary and of the program under test.
    directory: tempfile::TempDir,
    prefix: Vec<String>,
}

impl Place {
    fn command(&self, program: &Path, privileged: bool) -> Command {
        if privileged {
            let mut command = Command::new("unshare");
            command.args(["--mount", "--"]).arg(program).current_dir("/");
            return command;
        }
        let mut command = Command::new(&self.prefix[0]);
        command.args(&self.prefix[1..]).arg(program).current_dir("/");
        command
    }

    /// The exit code of a case; `None` when a signal ended it.
    fn run(&self, name: &str, privileged: bool, barred: bool) -> Option<i32> {
        let first = if barred { "setpriv" } else { "env" };
        let mut command = self.command(Path::new(first), privileged);
        if barred {
            command.args(["--bounding-set", "-all,+sys_admin", "--", "env"]);
        }
        command.arg(format!("{INSIDE}={name}"));
        for key in [
            "CORACLE_MODEL_SEQUENCES",
            "CORACLE_MODEL_SEED",
            "CORACLE_STRESS_SECONDS",
            "CORACLE_FSX_OPERATIONS",
        ] {
            if let Ok(value) = std::env::var(key) {
                command.arg(format!("{key}={value}"));
            }
        }
        command.arg(self.directory.path().join("test"));
        command.status().expect("the prefix was tried before").code()
    }
}

/// Finds out how to get the namespaces, or why they cannot be had.
fn prepare() -> Result<Place, String> {
    if let Err(e) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        return Err(format!("/dev/fuse: {e}"));
    }
    let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open.clone()).map_err(|e| e.to_string())?;
    let this = std::env::current_exe().map_err(|e| e.to_string())?;
    let program = PathBuf::from(env!("CARGO_BIN_EXE_overlayfs-fuse"));
    for (from, to) in [(this, "test"), (program, "overlayfs-fuse")] {
        let to = directory.path().join(to);
        std::fs::copy(&from, &to).map_err(|e| format!("{}: {e}", from.display()))?;
        std::fs::set_permissions(&to, open.clone()).map_err(|e| e.to_string())?;
    }
    // Suites that are not built here come along if they are installed.
    let path = std::env::var_os("PATH").unwrap_or_default();
    for suite in ["pjdfstest", "fsx"] {
        let found = std::env::split_paths(&path).map(|d| d.join(suite)).find(|p| p.is_file());
        if let Some(from) = found {
            let to = directory.path().join(suite);
            std::fs::copy(&from, &to).map_err(|e| format!("{}: {e}", from.display()))?;
            std::fs::set_permissions(&to, open.clone()).map_err(|e| e.to_string())?;
        }
    }
    let mut prefix: Vec<String> = Vec::new();
    if nix::unistd::geteuid().is_root() {
        let user = "coracle-test";
        let set = ["setpriv", "--reuid", user, "--regid", user, "--init-groups", "--reset-env"];
        prefix.extend(set.map(str::to_owned));
    }
    let unshare = ["unshare", "--user", "--mount", "--map-root-user", "--map-auto", "--"];
    prefix.extend(unshare.map(str::to_owned));
    let place = Place { directory, prefix };
    match place.command(Path::new("true"), false).output() {
        Ok(out) if out.status.success() => Ok(place),
        Ok(out) => Err(format!(
            "no user namespace with subordinate ids: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        )),
        Err(e) => Err(format!("{}: {e}", place.prefix[0])),
    }
}
