//! The command line: runc's commands and flags.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

/// Open Container Initiative runtime: runs bundles, and says what this host has of what containers need
#[derive(Debug, Parser)]
#[command(name = "coracle", version = shim::info::LINES, disable_version_flag = true)]
pub struct CommandLine {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

impl CommandLine {
    /// Reads it. As with runc, a long flag may have a single dash.
    ///
    /// # Errors
    /// Wrong usage, or help.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = Self::with_help();
        let matches = command.try_get_matches_from_mut(with_double_dashes(arguments.into_iter().collect()))?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }

    /// Help begins as runc's does: the name of what it is about, and what that is.
    fn with_help() -> clap::Command {
        let template = |name: &str| format!("NAME:\n   {name} - {{about}}\n\nUSAGE:\n   {{usage}}\n\n{{all-args}}");
        // Of a flag that is given twice the last one counts.
        let command = Self::command().args_override_self(true);
        let names: Vec<String> = command.get_subcommands().map(|inner| inner.get_name().to_owned()).collect();
        names.into_iter().fold(command.help_template(template("coracle")), |command, name| {
            let template = template(&format!("coracle {name}"));
            command.mut_subcommand(name, |inner| inner.help_template(template))
        })
    }
}

/// The arguments with two dashes before each long flag, as far as they are this command's and not those of a program to run. A switch may have
/// a value, as with runc.
fn with_double_dashes(arguments: Vec<OsString>) -> Vec<OsString> {
    let root = CommandLine::command();
    let (mut command, mut words) = (&root, arguments.into_iter());
    let mut result: Vec<OsString> = words.next().into_iter().collect();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy().into_owned();
        let Some(flag) = text.strip_prefix('-').filter(|flag| !flag.is_empty() && *flag != "-") else {
            let inner = command.find_subcommand(&text);
            // Nothing but flags may stand before the name of a command.
            if text == "--" && command.has_subcommands() {
                continue;
            }
            result.push(word);
            command = inner.unwrap_or(command);
            // What follows is a program's own, or is taken as it is.
            if inner.is_none() && (text == "--" || command.has_subcommands() || takes_all(command)) {
                break;
            }
            continue;
        };
        let name = flag.trim_start_matches('-').split('=').next().unwrap_or_default();
        let long = command.get_arguments().find(|argument| argument.get_long() == Some(name) && (flag.starts_with('-') || name.len() > 1));
        let short = || command.get_arguments().find(|argument| argument.get_short().is_some_and(|short| flag == short.to_string()));
        let known = long.or_else(short);
        if let Some((before, value)) = text.split_once('=')
            && known.is_some_and(|argument| !argument.get_action().takes_values())
            && let Some(on) = switch(value)
        {
            result.extend(on.then(|| OsString::from(format!("--{}", before.trim_start_matches('-')))));
            continue;
        }
        result.push(if long.is_some() && !flag.starts_with('-') { OsString::from(format!("-{text}")) } else { word });
        if known.is_some_and(|argument| argument.get_action().takes_values() && !flag.contains('=')) {
            result.extend(words.next());
        }
    }
    result.extend(words);
    result
}

/// Whether the last argument is all that follows.
fn takes_all(command: &clap::Command) -> bool {
    command.get_arguments().any(clap::Arg::is_trailing_var_arg_set)
}

/// As Go's `strconv.ParseBool`.
fn switch(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[derive(Debug, Args)]
pub struct Globals {
    /// Directory of the containers' state [default: /run/coracle, or coracle below $XDG_RUNTIME_DIR for other users than root]
    #[arg(long)]
    pub root: Option<PathBuf>,
    /// File for failures and warnings, besides standard error
    #[arg(long)]
    pub log: Option<PathBuf>,
    /// Form of its lines
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Tell what is done as well: each step of a process that is started
    #[arg(long)]
    pub debug: bool,
    /// systemd makes the containers' cgroups; cgroupsPath has the form slice:prefix:name, and where systemd runs that says as much
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Annotations of crun's count: run.oci.keep_original_groups, mount_context_type, hooks.stdout, hooks.stderr
    #[arg(long)]
    pub crun_annotations: bool,
    /// Accepted as it is found to be: true only in a user namespace
    #[arg(long, value_enum, default_value_t = Rootless::Auto)]
    pub rootless: Rootless,
    /// Accepted for the sake of callers of runc: there is no checkpoint
    #[arg(long)]
    pub criu: Option<PathBuf>,
    /// Print the version
    #[arg(long, short = 'v', action = clap::ArgAction::Version)]
    pub version: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rootless {
    True,
    False,
    Auto,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say which kernel features, cgroups and security modules this host has, and what each missing one costs
    Check {
        /// The same for programs
        #[arg(long)]
        json: bool,
    },
    /// Make a container whose first process waits for its start
    Create {
        #[command(flatten)]
        options: CreateFlags,
        id: String,
    },
    /// Let the first process of a created container go
    Start { id: String },
    /// Create and start a container, and wait for its end
    Run {
        #[command(flatten)]
        options: CreateFlags,
        /// Do not wait
        #[arg(long, short)]
        detach: bool,
        /// Leave the container's state after its end
        #[arg(long)]
        keep: bool,
        /// Accepted for the sake of callers of runc: there never is one
        #[arg(long)]
        no_subreaper: bool,
        id: String,
    },
    /// Print the state of a container
    State { id: String },
    /// Send a signal to the first process, or to all
    Kill {
        /// To every process of the container
        #[arg(long, short)]
        all: bool,
        id: String,
        /// A name or number
        #[arg(default_value = "SIGTERM")]
        signal: String,
    },
    /// Forget a container that has ended, or was never started
    Delete {
        /// Kill it first, and accept that it does not exist
        #[arg(long, short)]
        force: bool,
        id: String,
    },
    /// Run a process in a container
    Exec(Exec),
    /// List the containers
    List {
        #[arg(long, short, value_enum, default_value_t = Format::Table)]
        format: Format,
        /// Only their ids
        #[arg(long, short)]
        quiet: bool,
    },
    /// List the processes of a container
    Ps {
        #[arg(long, short, value_enum, default_value_t = Format::Table)]
        format: Format,
        id: String,
        /// Options of ps(1) [default: -ef]
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Freeze a container
    Pause { id: String },
    /// Thaw a container
    Resume { id: String },
    /// Change limits
    Update(Update),
    /// Print what a container uses
    Events {
        /// Once
        #[arg(long)]
        stats: bool,
        /// How often: 5s, 1m30s, 1.5s, 500ms
        #[arg(long, default_value = "5s")]
        interval: String,
        id: String,
    },
    /// Write a specification to start from
    Spec {
        /// Where to, instead of the current directory
        #[arg(long, short)]
        bundle: Option<PathBuf>,
        /// For a container in a user namespace of the caller's
        #[arg(long)]
        rootless: bool,
    },
    /// Print what this build does, as the runtime spec's Features
    Features,
    /// Look at the node's networks, and clear up what nobody uses
    Network {
        /// The node's file [default: /etc/coracle/network.toml]
        #[arg(long)]
        file: Option<PathBuf>,
        #[command(subcommand)]
        command: NetworkCommand,
    },
    /// Not supported
    // Engines take a help of it for the ability.
    #[command(disable_help_flag = true)]
    Checkpoint {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Not supported
    #[command(disable_help_flag = true)]
    Restore {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

impl Command {
    /// Whether it forks what enters a container or runs a hook, and so must run sealed: nothing that a container may see of it leads to the
    /// program's file.
    pub fn starts_processes(&self) -> bool {
        match self {
            Self::Create { .. } | Self::Start { .. } | Self::Run { .. } | Self::Exec(_) | Self::Delete { .. } | Self::Restore { .. } => {
                true
            }
            Self::Check { .. }
            | Self::State { .. }
            | Self::Kill { .. }
            | Self::List { .. }
            | Self::Ps { .. }
            | Self::Pause { .. }
            | Self::Resume { .. }
            | Self::Update(_)
            | Self::Events { .. }
            | Self::Spec { .. }
            | Self::Features
            | Self::Network { .. }
            | Self::Checkpoint { .. } => false,
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// List the networks and how many containers are in each
    Ls {
        #[arg(long, short, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Print a network and its containers, as JSON
    Inspect { name: String },
    /// Remove what containers that have gone have left, and the networks that no container is in
    Prune,
}

#[derive(Debug, Args)]
pub struct CreateFlags {
    /// Directory of config.json [default: the current one]
    #[arg(long, short)]
    pub bundle: Option<PathBuf>,
    /// Unix socket that receives the master of the container's terminal
    #[arg(long)]
    pub console_socket: Option<PathBuf>,
    /// File for the process id of the first process
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
    /// Unix socket that receives a descriptor of the first process
    #[arg(long)]
    pub pidfd_socket: Option<PathBuf>,
    /// Move the root instead of pivoting to it: for a root on the initramfs
    #[arg(long)]
    pub no_pivot: bool,
    /// Leave the caller's session keyring in place
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass so many descriptors from 3 on to the container
    #[arg(long, default_value_t = 0)]
    pub preserve_fds: u16,
}

#[derive(Debug, Args)]
pub struct Exec {
    /// Unix socket that receives the master of the terminal
    #[arg(long)]
    pub console_socket: Option<PathBuf>,
    /// Working directory
    #[arg(long)]
    pub cwd: Option<String>,
    /// KEY=value, besides the container's
    #[arg(long, short)]
    pub env: Vec<String>,
    /// With a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// uid[:gid]
    #[arg(long, short)]
    pub user: Option<String>,
    /// Supplementary groups
    #[arg(long, short = 'g')]
    pub additional_gids: Vec<u32>,
    /// File with the JSON of a process, in place of all that follows from other flags
    #[arg(long, short)]
    pub process: Option<PathBuf>,
    /// Do not wait for its end
    #[arg(long, short)]
    pub detach: bool,
    /// File for its process id
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
    /// Unix socket that receives a descriptor of it
    #[arg(long)]
    pub pidfd_socket: Option<PathBuf>,
    /// SELinux label
    #[arg(long)]
    pub process_label: Option<String>,
    /// AppArmor profile
    #[arg(long)]
    pub apparmor: Option<String>,
    /// No gain of rights by execve
    #[arg(long)]
    pub no_new_privs: bool,
    /// Capabilities besides the container's
    #[arg(long, short)]
    pub cap: Vec<String>,
    /// Pass so many descriptors from 3 on
    #[arg(long, default_value_t = 0)]
    pub preserve_fds: u16,
    /// In a paused container as well
    #[arg(long)]
    pub ignore_paused: bool,
    /// [controllers:]path of an existing cgroup below the container's
    #[arg(long)]
    pub cgroup: Vec<String>,
    pub id: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Update {
    /// File with the JSON of linux.resources, - for standard input; other flags are ignored then
    #[arg(long, short)]
    pub resources: Option<PathBuf>,
    /// 10 to 1000
    #[arg(long)]
    pub blkio_weight: Option<u16>,
    /// Microseconds
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub cpu_period: String,
    /// Microseconds
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub cpu_quota: String,
    /// Microseconds
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub cpu_burst: String,
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub cpu_share: String,
    /// Microseconds
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub cpu_rt_period: String,
    /// Microseconds
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub cpu_rt_runtime: String,
    /// A list as 0-3,5
    #[arg(long, default_value = "")]
    pub cpuset_cpus: String,
    /// A list as 0-3,5
    #[arg(long, default_value = "")]
    pub cpuset_mems: String,
    /// 1 for the idle policy
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub cpu_idle: String,
    /// Bytes, or with a unit as 50M and 1.5GiB; -1 for no limit
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub memory: String,
    /// The same, for the soft limit
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub memory_reservation: String,
    /// The same, for memory and swap together
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub memory_swap: String,
    /// Accepted for the sake of callers of runc: no kernel has it any more
    #[arg(long, default_value = "", allow_hyphen_values = true, hide = true)]
    pub kernel_memory: String,
    /// The same
    #[arg(long, default_value = "", allow_hyphen_values = true, hide = true)]
    pub kernel_memory_tcp: String,
    #[arg(long, allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Line of resctrl's schemata for the L3 cache, such as L3:0=f
    #[arg(long, default_value = "")]
    pub l3_cache_schema: String,
    /// Line of resctrl's schemata for memory bandwidth, such as MB:0=50
    #[arg(long, default_value = "")]
    pub mem_bw_schema: String,
    pub id: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn long_flags_may_have_one_dash() {
        let read = |words: &str| {
            let words = words.split(' ').map(OsString::from).collect();
            with_double_dashes(words).iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            read("coracle -root /r -debug run -bundle /b -d -pid-file=/p id"),
            "coracle --root /r --debug run --bundle /b -d --pid-file=/p id"
        );
        assert_eq!(read("coracle -debug=true --systemd-cgroup=false delete id -force"), "coracle --debug delete id --force");
        assert_eq!(read("coracle -- list -quiet"), "coracle list --quiet");
        assert_eq!(read("coracle kill -- id -all"), "coracle kill -- id -all");
        assert_eq!(read("coracle exec -e -tty -t c -tty ls -cwd"), "coracle exec -e -tty -t c -tty ls -cwd");
        assert_eq!(read("coracle --root -x create --bundle -b id -bundle"), "coracle --root -x create --bundle -b id --bundle");
    }

    #[test]
    fn what_follows_the_id_is_the_programs() {
        let line = CommandLine::read(["coracle", "--root", "/a", "--root", "/b", "list"].map(OsString::from)).unwrap();
        assert_eq!(line.globals.root.as_deref(), Some(std::path::Path::new("/b")));
        let line = CommandLine::try_parse_from(["coracle", "exec", "-d", "c", "ls", "-d", "--force"]).unwrap();
        let Command::Exec(exec) = line.command else { panic!("not exec") };
        assert_eq!((exec.id.as_str(), exec.detach, exec.command), ("c", true, ["ls", "-d", "--force"].map(str::to_owned).to_vec()));
    }
}
