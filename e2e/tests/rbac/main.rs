//! Who may do what: RBAC and admission policies of the chart, asked with real tokens.
//!
//! What must be refused is asked as a dry run, which policies judge like any other request.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod ask;
mod chart;
mod fields;
mod gitops;
mod limits;
mod metadata;
mod node_daemon;
mod operator;
mod owners;
mod people;
mod sample;
mod secrets;

use std::process::ExitCode;

use gpudesk_e2e::cluster::Cluster;
use gpudesk_e2e::trials::Suite;

fn main() -> ExitCode {
    Suite::<Cluster>::new("rbac")
        .trial("policies_are_in_effect_and_their_expressions_type_check", chart::policies)
        .trial("settings_that_make_no_sense_are_refused_by_the_schema", chart::settings)
        .trial("every_variant_of_the_chart_is_accepted_by_the_server", chart::variants)
        .trial("pods_have_the_rights_they_need_and_no_more", chart::pods)
        .trial("the_accounts_have_exactly_these_rights", chart::rights)
        .trial("a_daemon_writes_its_own_node_only", node_daemon::nodes)
        .trial("a_daemon_writes_the_status_of_desktops_on_its_node_only", node_daemon::desktops)
        .trial("a_daemon_writes_its_own_lease_only", node_daemon::leases)
        .trial("a_daemon_writes_events_about_its_own_node_only", node_daemon::events)
        .trial("a_daemon_gets_tokens_of_its_own_node_only", node_daemon::tokens)
        .trial("a_token_without_a_node_writes_nothing", node_daemon::unbound)
        .trial("a_node_reads_the_secrets_of_its_desktops_only", secrets::of_its_desktops)
        .trial("the_operator_grants_single_secrets_only", operator::roles)
        .trial("the_operator_writes_accounts_of_nodes_only", operator::accounts)
        .trial("the_operator_makes_its_key_and_no_node_reads_it", operator::key)
        .trial("the_operator_writes_status_and_finalizer_of_a_desktop_only", operator::desktops)
        .trial("the_operator_taints_single_devices_only_and_ends_no_pods", operator::taints)
        .trial("a_template_in_use_stays_and_names_its_users", people::template_in_use)
        .trial("a_namespace_goes_with_a_template_in_use", people::namespace)
        .trial("tenants_write_no_status_and_no_finalizer", people::tenants)
        .trial("view_edit_and_admin_have_rights_on_desktops", people::roles)
        .trial("fields_of_a_desktop_are_written_as_the_table_says", |cluster| {
            fields::writers(cluster, "Desktop")
        })
        .trial("fields_of_a_template_are_written_as_the_table_says", |cluster| {
            fields::writers(cluster, "DesktopTemplate")
        })
        .trial("fields_of_a_node_are_written_as_the_table_says", |cluster| {
            fields::writers(cluster, "GpuNode")
        })
        .trial("fields_of_a_profile_are_written_as_the_table_says", |cluster| {
            fields::writers(cluster, "GpuProfile")
        })
        .trial("an_owner_that_does_not_exist_is_no_way_to_delete", metadata::garbage)
        .trial("the_programs_make_objects_with_the_metadata_they_need_and_no_other", metadata::made)
        .trial("the_operator_writes_two_conditions_of_a_node_beside_its_daemon", metadata::heard)
        .trial("nobody_owns_fields_of_a_status_but_their_writers", owners::of_a_status)
        .trial("whoever_writes_a_spec_does_it_as_before", owners::of_a_spec)
        .trial("many_who_update_are_no_owners_of_a_status", owners::of_many)
        .trial("a_priority_has_a_cap_in_each_namespace", limits::priority)
        .trial("nobody_fills_an_object_with_what_says_nothing", limits::sizes)
        .trial("a_bridge_of_the_host_is_named_only_where_an_admin_says_so", limits::host_networks)
        .trial("inline_user_data_is_warned_of_and_refused_where_an_admin_says_so", limits::inline)
        .trial("objects_are_kept_as_they_are_applied", gitops::kept_as_applied)
        .trial("what_is_applied_twice_changes_nothing", gitops::applied_twice)
        .run()
}
