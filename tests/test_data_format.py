"""What mssfix comes to, by OpenVPN's own values (``test_crypto.c``, test_mssfix_mtu_calculation) and by hand."""

import pytest

from ginnel.openvpn.data_format import DataFormat, MssFix


@pytest.mark.parametrize("size", range(900, 1201, 7))
def test_an_aead_cipher_costs_the_same_for_every_size(size: int) -> None:
    data_format = DataFormat("AES-256-GCM")
    mss = data_format.mss(MssFix(size), peer_id=True, tcp=False, ipv6=False, tap=False)
    assert mss == size - 4 - 4 - 16 - 40


@pytest.mark.parametrize(("size", "mss"), [(1012, 915), (1013, 931), (1028, 931), (1029, 947)])
def test_cbc_packets_come_in_whole_blocks(size: int, mss: int) -> None:
    """Packets are a multiple of 16 long behind header (1), HMAC (20) and IV (16)."""
    data_format = DataFormat("AES-128-CBC", "SHA1")
    assert data_format.mss(MssFix(size), peer_id=False, tcp=False, ipv6=False, tap=False) == mss
    inner = mss + 40
    padded = (4 + inner) // 16 * 16 + 16
    assert 1 + 20 + 16 + padded <= size < 1 + 20 + 16 + padded + 16


@pytest.mark.parametrize(
    ("data_format", "options", "mss"),
    [
        (DataFormat("AES-256-GCM"), {}, 1400),
        (DataFormat("AES-256-GCM"), {"ipv6": True}, 1380),
        (DataFormat("AES-256-GCM"), {"tcp": True}, 1386),
        (DataFormat("AES-256-GCM", epochs=True), {}, 1396),
        (DataFormat("AES-256-GCM", framing="stub"), {}, 1399),
        (DataFormat("AES-256-GCM", framing="stub-v2"), {}, 1400),
        (DataFormat("none", "SHA256"), {}, 1384),
        (DataFormat("none", "none"), {"peer_id": False}, 1419),
        (DataFormat("AES-256-GCM"), {"tap": True}, 1368),
    ],
)
def test_each_format_costs_what_it_adds(data_format: DataFormat, options: dict[str, bool], mss: int) -> None:
    usual = {"peer_id": True, "tcp": False, "ipv6": False, "tap": False}
    assert data_format.mss(MssFix(1492, "mtu"), **{**usual, **options}) == mss
