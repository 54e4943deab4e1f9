//! The built binary from outside: config file in, SMTP and commands, exit codes and mail out.

mod client;
mod config_file;
mod control_socket;
mod early_answer;
mod extensions;
mod homes;
mod hostile_input;
mod life;
mod mail_log;
mod mailboxes;
mod name_server;
mod next_hop;
mod node;
mod pools;
mod priorities;
mod queue_commands;
mod queue_steering;
mod queue_why;
mod relay;
mod reload;
mod reports;
mod sender_routes;
mod shards;
mod smarthosts;
mod smuggling;
mod store;
