//! What the monitor makes on the host before anything else starts.

use std::io;

use super::{Monitor, say};
use crate::cgroup;
use crate::plan::MonitorStep;
use crate::run::RunError;

impl Monitor<'_> {
    pub(super) fn prepare(&mut self, step: &MonitorStep) -> Result<(), RunError> {
        match step {
            MonitorStep::MakeDirectory(path) => std::fs::create_dir_all(path).map_err(|e| {
                RunError::os(format!("cannot make the directory {}", path.display()))(e)
            }),
            MonitorStep::WriteFile { path, content } => std::fs::write(path, content)
                .map_err(|e| RunError::os(format!("cannot write {}", path.display()))(e)),
            MonitorStep::Group { .. } => {
                if let Err(error) = self.make_group(step) {
                    // It runs without: nobody is to be kept from work by this.
                    say(&format!("warning: the container has no control group: {error}"));
                }
                Ok(())
            }
            MonitorStep::Netstack { .. } => Ok(()),
        }
    }

    fn make_group(&mut self, step: &MonitorStep) -> io::Result<()> {
        let MonitorStep::Group { parent, name, controllers, settings, .. } = step else {
            return Ok(());
        };
        cgroup::enable(parent, controllers)?;
        let dir = parent.join(name);
        cgroup::make(&dir)?;
        let group = cgroup::open(&dir);
        self.group = Some(dir.clone());
        for (file, value) in settings {
            cgroup::put(&dir.join(file), value)
                .map_err(|error| io::Error::other(format!("{file}: {error}")))?;
        }
        self.group_fd = Some(group?);
        Ok(())
    }
}
