//! How a mutation that was killed is laid to rest, one durable thing after the other, so that whoever does it may be killed too.

/// What is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rest {
    /// Whether an end is stored under its id.
    pub stored: bool,
    /// Whether the log says that it was killed.
    pub told: bool,
    /// Whether operation.json names it.
    pub stands: bool,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Due {
    /// Under its id is stored that it was killed: from then on it never runs again, also after a boot.
    Store,
    /// A record tells of it.
    Tell,
    /// operation.json goes.
    Clear,
}

impl Rest {
    /// What comes next; none where it rests. operation.json goes last: until then any caller finds it again.
    #[must_use]
    pub const fn due(self) -> Option<Due> {
        match self {
            Self { stored: false, .. } => Some(Due::Store),
            Self { told: false, .. } => Some(Due::Tell),
            Self { stands: true, .. } => Some(Due::Clear),
            _ => None,
        }
    }

    /// What is known when that is done.
    #[must_use]
    pub const fn after(self, done: Due) -> Self {
        match done {
            Due::Store => Self { stored: true, ..self },
            Due::Tell => Self { told: true, ..self },
            Due::Clear => Self { stands: false, ..self },
        }
    }
}
