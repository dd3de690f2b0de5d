"""The table of who may call what: complete, and about the right fields."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from passerby.errors import InvalidArgumentError
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import model_service_pb2 as model_v1
from passerby.v1 import resources_pb2 as resources
from passerby.v1 import search_service_pb2 as search_v1
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby_server.security import policy
from passerby_server.security.policy import RULES

METHODS: dict[str, MethodDescriptor] = {
    f"{service.name}/{method.name}": method
    for module in (gallery_v1, tracklet_v1, search_v1, model_v1)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
# Which a request may name a gallery by; the filter's and the query's are within the gallery of `parent`.
GALLERY_FIELDS = ("parent", "name", "gallery_id")


def test_every_method_of_the_api_has_a_rule_and_no_other() -> None:
    assert set(RULES) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_who_names_a_gallery_is_checked_for_it(method: str) -> None:
    rule, description = RULES[method], METHODS[method]
    named = [field for field in GALLERY_FIELDS if field in description.input_type.fields_by_name]
    if not named and "gallery" in description.input_type.fields_by_name:
        named = ["gallery.name"]
    if description.client_streaming:
        assert not rule.gallery  # checked by item
    else:
        everything = method == "ModelService/ReloadBundle"
        assert [rule.gallery] == (named or [policy.ALL_GALLERIES if everything else ""])


@pytest.mark.parametrize("method", METHODS)
def test_fields_of_a_rule_exist(method: str) -> None:
    rule, description = RULES[method], METHODS[method]
    for path in (*rule.identities, *rule.tracklets, *rule.counts, *rule.galleries):
        assert any(_exists(message, path) for message in _parts(description)), path


def _parts(method: MethodDescriptor) -> list[Descriptor]:
    """Request and answer; of a stream also what they are made of, since a service notes it part by part."""
    parts: list[Descriptor] = [method.input_type, method.output_type]
    if method.client_streaming:
        for message in parts:
            parts += [one for field in message.fields if (one := field.message_type) and one not in parts]
    return parts


def _exists(message: Descriptor, path: str) -> bool:
    name, _, rest = path.partition(".")
    field = message.fields_by_name.get(name)
    return field is not None and (not rest or (field.message_type is not None and _exists(field.message_type, rest)))


def test_roles_are_what_the_page_says() -> None:
    may = {
        role: {method for method, rule in RULES.items() if role in rule.roles}
        for role in ("reader", "ingester", "admin")
    }
    assert may["admin"] == set(RULES)
    assert may["ingester"] == {
        "TrackletService/IngestTracklet",
        "TrackletService/StreamTracklet",
        "TrackletService/BulkIngestTracklets",
        "ModelService/GetModelInfo",
        "GalleryService/GetGallery",
    }
    # What has no side effects, and nothing else; the audit is the admin's.
    reads = {
        name
        for name, method in METHODS.items()
        if method.GetOptions().idempotency_level == method.GetOptions().NO_SIDE_EFFECTS
    }
    searches = {"SearchService/StreamSearchTracklets"}  # stores in the end only for an ingester
    assert may["reader"] - searches == reads - {"GalleryService/ListAuditEntries"}


def test_the_gallery_of_a_request() -> None:
    def gallery(method: str, **fields: str) -> str:
        return policy.gallery_of(RULES[method], GetMessageClass(METHODS[method].input_type)(**fields))

    assert gallery("GalleryService/CreateGallery", gallery_id="a") == "a"
    assert gallery("TrackletService/GetTracklet", name="galleries/a/tracklets/t") == "a"
    assert gallery("SearchService/SearchTracklets", parent="galleries/a") == "a"
    assert gallery("TrackletService/EraseIdentity", parent="galleries/-") == policy.ALL_GALLERIES
    assert gallery("ModelService/GetModelInfo") == ""
    assert gallery("ModelService/ReloadBundle") == policy.ALL_GALLERIES
    for wrong in ("", "a", "galleries/", "galleries/A", "galleries/a/", "galleries/a/tracklets/t/x", "x/a/tracklets/t"):
        with pytest.raises(InvalidArgumentError):
            gallery("TrackletService/GetTracklet", name=wrong)


def test_which_galleries_take_whose_place() -> None:
    create = gallery_v1.CreateGalleryRequest(gallery_id="b", gallery=resources.Gallery(follows="galleries/a"))
    assert policy.details(RULES["GalleryService/CreateGallery"], create) == {"follows": "a"}
    replace = gallery_v1.ReplaceGalleryRequest(
        name="galleries/a", replacement="galleries/b", retired_gallery_id="a-before"
    )
    rule = RULES["GalleryService/ReplaceGallery"]
    assert policy.details(rule, replace) == {"replacement": "b", "retired_gallery_id": "a-before"}
    wrong = gallery_v1.ReplaceGalleryRequest(replacement="B" * 5_000)
    assert policy.details(rule, wrong) == {}


def test_whom_a_search_is_about() -> None:
    rule = RULES["SearchService/SearchTracklets"]
    request = search_v1.SearchTrackletsRequest(parent="galleries/a", tracklet="galleries/a/tracklets/t")
    request.filter.identity_ids.extend(["ann", "bob"])
    assert list(policy.identities(rule, request)) == ["ann", "bob"]
    assert list(policy.tracklets(rule, request, "a")) == [("a", "t")]
    assert policy.details(rule, request) == {"query": "tracklet"}
    answer = search_v1.SearchTrackletsResponse()
    for identity in ("ann", "", "ann"):
        answer.hits.add().tracklet.identity_id = identity
    assert list(policy.identities(rule, answer)) == ["ann", "ann"]
    assert policy.details(rule, answer) == {"hits": 3}
