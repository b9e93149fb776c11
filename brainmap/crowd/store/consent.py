"""What a worker agrees to: a text in each language, and the version of it all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from brainmap.crowd.store.settings import LANGUAGES, SiteSettings
from brainmap.files import atomic_path, fingerprint

__all__ = ["Consent", "read_consent", "write_consent_texts"]

_TEXTS = {
    "en": """\
You are asked to mark cells in microscope images for scientific research.

What is kept: the name you choose here (please not your real name and no e-mail address), a password in a form nobody \
can read, the places you mark and when, how far you have come, and this consent with its time. Log-ins are recorded \
without your address. Nothing else is asked or kept, and nothing is passed on with your name.

Taking part is voluntary. You may stop at any time, see and download everything that is held about you, and delete \
your account.
""",
    "ja": """\
科学研究のために、顕微鏡画像の中の細胞に印を付けていただきます。

保存するもの:ここで選ぶ名前(本名やメールアドレスは使わないでください)、誰にも読めない形にしたパスワード、\
印の位置と時刻、進み具合、この同意とその時刻。ログインの記録にあなたの接続元アドレスは残りません。\
それ以外は尋ねず、保存せず、名前を付けて第三者に渡すこともありません。

参加は自由です。いつでもやめることができ、保存されている内容をすべて見てダウンロードし、\
アカウントを削除することができます。
""",
}
_AFTER = {
    ("en", "delete"): "When you delete your account, your marks are deleted with it.",
    ("en", "anonymous"): "When you delete your account, your marks stay in the study without any name.",
    ("ja", "delete"): "アカウントを削除すると、あなたの付けた印もすべて削除されます。",
    ("ja", "anonymous"): "アカウントを削除しても、印は名前のない形で研究に残ります。",
}


@dataclass(frozen=True)
class Consent:
    """Texts by language, and one version for all of them: any change of a text asks for consent anew."""

    version: str
    texts: dict[str, str]

    def text(self, language: str) -> str:
        """The text in a language, or in the first there is."""
        return self.texts.get(language) or next(iter(self.texts.values()))


def write_consent_texts(folder: Path) -> None:
    """Put the texts into a site's folder, where its owner can edit them."""
    for language in LANGUAGES:
        with atomic_path(folder / f"consent.{language}.txt") as temporary:
            temporary.write_text(_TEXTS[language], encoding="utf-8")


def read_consent(folder: Path, settings: SiteSettings) -> Consent:
    """The present consent of a site."""
    texts = {}
    for language in settings.languages:
        path = folder / f"consent.{language}.txt"
        text = path.read_text(encoding="utf-8") if path.is_file() else _TEXTS[language]
        texts[language] = f"{text.strip()}\n\n{_AFTER[language, settings.clicks_after_deletion]}"
    return Consent(fingerprint(texts)[:12], texts)
