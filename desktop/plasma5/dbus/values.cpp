#include "values.h"

#include <QDBusArgument>

namespace
{
/** The value of one type. What is not known here is what no call of the widget needs. */
QVariant argument(const QString &type, const QVariant &value)
{
    if (type == QLatin1String("a{sv}"))
        return value.toMap();
    if (type == QLatin1String("as"))
        return value.toStringList();
    if (type.size() != 1)
        return {};
    switch (type.front().toLatin1()) {
    case 'b':
        return value.toBool();
    case 'd':
        return value.toDouble();
    case 'i':
        return value.toInt();
    case 'o':
        return QVariant::fromValue(QDBusObjectPath(value.toString()));
    case 's':
        return value.toString();
    case 't':
        return value.toULongLong();
    case 'u':
        return value.toUInt();
    case 'v':
        return QVariant::fromValue(QDBusVariant(value));
    case 'x':
        return value.toLongLong();
    default:
        return {};
    }
}

/** The next value of what is read; that is not copied, as a copy would not move on. */
QVariant next(const QDBusArgument &from)
{
    switch (from.currentType()) {
    case QDBusArgument::ArrayType: {
        QVariantList list;
        from.beginArray();
        while (!from.atEnd())
            list.append(next(from));
        from.endArray();
        return list;
    }
    case QDBusArgument::StructureType: {
        QVariantList list;
        from.beginStructure();
        while (!from.atEnd())
            list.append(next(from));
        from.endStructure();
        return list;
    }
    case QDBusArgument::MapType: {
        QVariantMap map;
        from.beginMap();
        while (!from.atEnd()) {
            from.beginMapEntry();
            const QString key = next(from).toString();
            map.insert(key, next(from));
            from.endMapEntry();
        }
        from.endMap();
        return map;
    }
    default:
        return plain(from.asVariant());
    }
}
}

std::optional<QVariantList> typed(const QString &signature, const QVariantList &values)
{
    // As in Plasma 6, the arguments are written as one structure: "(su)".
    QString rest = signature.mid(1, signature.size() - 2);
    QVariantList all;
    for (const QVariant &value : values) {
        const QString type = rest.startsWith(QLatin1String("a{")) ? rest.left(rest.indexOf(QLatin1Char('}')) + 1)
            : rest.startsWith(QLatin1Char('a'))                   ? rest.left(2)
                                                                  : rest.left(1);
        rest.remove(0, type.size());
        all.append(argument(type, value));
        if (!all.last().isValid())
            return std::nullopt;
    }
    return rest.isEmpty() ? std::optional(all) : std::nullopt;
}

QVariant plain(const QVariant &value)
{
    const int type = value.userType();
    if (type == qMetaTypeId<QDBusVariant>())
        return plain(value.value<QDBusVariant>().variant());
    if (type == qMetaTypeId<QDBusObjectPath>())
        return value.value<QDBusObjectPath>().path();
    if (type == qMetaTypeId<QDBusSignature>())
        return value.value<QDBusSignature>().signature();
    if (type == qMetaTypeId<QDBusArgument>())
        return next(value.value<QDBusArgument>());
    if (type == QMetaType::QByteArray) {
        QVariantList bytes;
        for (const char byte : value.toByteArray())
            bytes.append(static_cast<uchar>(byte));
        return bytes;
    }
    return value;
}
