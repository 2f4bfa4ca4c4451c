// What D-Bus calls its values and what QML does: both ways.

#pragma once

#include <QVariant>

#include <optional>

/** The arguments of a call, as its signature wants them; nothing if that has a type that is not known here. */
std::optional<QVariantList> typed(const QString &signature, const QVariantList &values);

/** What an answer holds, as numbers, strings, arrays and objects. */
QVariant plain(const QVariant &value);
