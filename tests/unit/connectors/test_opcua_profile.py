"""Profiles of OPC UA servers: which fit, what they know, where nodes are under the namespaces that a server has."""

from __future__ import annotations

from connectors.opcua_profile import OpcUaProfile, browse_paths, build_facts, fitting, limits_of
from connectors.profile import load_profiles

PROFILES = load_profiles(OpcUaProfile)
UA = "http://opcfoundation.org/UA/"
MACHINE_TOOL = [UA, "urn:machine", f"{UA}DI/", f"{UA}Machinery/", f"{UA}MachineTool/"]


def names(facts: dict[str, str]) -> list[str]:
    return [profile.profile for profile in fitting(PROFILES, facts)]


def test_by_build_info() -> None:
    """S7-1200 is the same product family, with smaller batches."""
    facts = build_facts({"ManufacturerName": "SIEMENS AG", "ProductName": "SIMATIC S7-1200"}, [UA])
    assert names(facts) == ["siemens-s7-1200"]
    assert limits_of(fitting(PROFILES, facts), facts)["read"] == 100
    facts["product"] = "SIMATIC S7-1500"
    assert limits_of(fitting(PROFILES, facts), facts)["read"] == 500


def test_by_companion_models() -> None:
    """A machine tool is also a machine: the more special profile has the nodes of both."""
    facts = build_facts({"ManufacturerName": "x"}, MACHINE_TOOL)
    assert names(facts) == ["opcua-di", "opcua-machinetool"]
    paths = browse_paths(PROFILES["opcua-machinetool"], {}, MACHINE_TOOL)
    base = f"/Objects/nsu={UA}Machinery/;Machines/*/nsu={UA}"
    assert paths["manufacturer"] == [f"{base}DI/;Identification/nsu={UA}DI/;Manufacturer"]
    assert paths["feed_override"][0].endswith(f"nsu={UA}MachineTool/;FeedOverride")


def test_one_tag_for_a_renamed_node() -> None:
    """PackML 1.00 said InProgress, 1.01 says InProcess; B&R changed a namespace, Prosys its slash."""
    change = browse_paths(PROFILES["opcua-packml"], {}, [UA, f"{UA}PackML/"])["state_change"]
    assert [path.rpartition(";")[2] for path in change] == ["StateChangeInProcess", "StateChangeInProgress"]
    for uri in PROFILES["prosys-simulation"].namespaces["sim"]:
        assert browse_paths(PROFILES["prosys-simulation"], {}, [UA, uri])["counter"][0].endswith(f"nsu={uri};Counter")
    for uri in PROFILES["br-automation-runtime"].namespaces["pv"]:
        assert names(build_facts({}, [UA, uri])) == ["br-automation-runtime"]


def test_a_namespace_that_the_server_does_not_have() -> None:
    assert browse_paths(PROFILES["opcua-di"], {}, [UA])["model"] == []
