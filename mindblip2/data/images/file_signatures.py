"""What unreadable bytes look like, for messages: most of them are web pages, LFS pointers and archives."""

HEAD = 64  # bytes that looks_like wants to see

SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"BM", "a BMP picture"),
    (b"version https://git-lfs", "a Git LFS pointer; run `git lfs pull` where it was cloned"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "an EPS or PostScript drawing; save it as PNG"),
    (b"\xd7\xcd\xc6\x9a", "a WMF drawing; save it as PNG"),
    (b"PK\x03\x04", "a ZIP archive (also .docx, .npz, .pth)"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"\x93NUMPY", "a NumPy array file; np.load it and pass the array"),
    (b"\x1a\x45\xdf\xa3", "a WebM or Matroska video"),
)
MARKUP = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML document (SVG?)"),
    (b"{", "JSON"),
    (b"[", "JSON"),
)


def looks_like(head):
    """A phrase for the first :data:`HEAD` bytes of a file: "an HTML page", "text beginning …"."""
    for signature, phrase in SIGNATURES:
        if head.startswith(signature):
            return phrase
    if head[:4] == b"RIFF":
        return (
            "a WebP picture"
            if head[8:12] == b"WEBP"
            else f"a RIFF file of type {head[8:12].decode('latin-1')!r}"
        )
    if head[4:8] == b"ftyp":
        return _iso_media(head[8:12])
    bare = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for opening, phrase in MARKUP:
        if bare.startswith(opening):
            return phrase
    return _text_or_binary(head)


def _iso_media(brand):
    if brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "a HEIC photo; save it as JPEG"
    if brand in (b"avif", b"avis"):
        return "an AVIF picture"
    return "an MP4 or QuickTime video"


def _text_or_binary(head):
    text = head.decode("utf-8", "ignore")  # the cut at HEAD bytes may split a character
    if len(text.encode()) >= len(head) - 3 and all(c.isprintable() or c.isspace() for c in text):
        return f"text beginning {text[:40]!r}"
    return f"binary data beginning {head[:8].hex(' ')}"
